"""The class-parallel module of the small trainer, with the methods of InsightFace's that others may replace."""

import copy
import logging

import mxnet as mx
from mxnet.model import BatchEndParam
from mxnet.module.base_module import BaseModule
from mxnet.module.module import Module


class ParallModule(BaseModule):
    """The network on every device; of the classifier each device has a part, over all embeddings."""

    def __init__(
        self, symbol, data_names, label_names, logger=logging, context=None, asymbol=None, args=None
    ):
        super(ParallModule, self).__init__(logger=logger)  # noqa: UP008 - as InsightFace's: by its own name
        self._context, self._iter, self._batch_size = context, 0, args.batch_size
        self._ctx_num_classes = args.ctx_num_classes
        self._curr_module = Module(symbol, data_names, label_names, context=context)
        self._arcface_modules = []
        for i in range(len(context)):
            args._ctxid = i
            self._arcface_modules.append(Module(asymbol(args), data_names, label_names, context=mx.gpu(i)))
        self._emb_size = args.emb_size

    @property
    def symbol(self):
        return self._curr_module.symbol

    @symbol.setter
    def symbol(self, _):
        pass

    def get_export_params(self):
        return self._curr_module.get_params()

    def init_params(
        self, initializer=None, arg_params=None, aux_params=None, allow_missing=False, force_init=False
    ):
        self._curr_module.init_params(
            initializer=initializer, arg_params=arg_params, aux_params=aux_params, allow_missing=allow_missing
        )
        for module in self._arcface_modules:
            module.init_params(initializer=mx.init.Normal(0.01))
        self.params_initialized = True

    def bind(self, data_shapes, label_shapes):
        self._curr_module.bind(data_shapes, label_shapes)
        rows = data_shapes[0][1][0]
        for module in self._arcface_modules:
            module.bind(
                [("data", (rows, self._emb_size))], [("softmax_label", (rows,))], inputs_need_grad=True
            )
        self.binded = True

    def init_optimizer(self, kvstore, optimizer):
        self._curr_module.init_optimizer(kvstore, optimizer[0])
        for module in self._arcface_modules:
            module.init_optimizer(kvstore, optimizer[1])
        self.optimizer_initialized = True

    def forward(self, data_batch, is_train=None):
        self._curr_module.forward(data_batch, is_train=is_train)
        if not is_train:
            return
        self._iter += 1
        embedding, label = self._curr_module.get_outputs(merge_multi_context=True)
        self.global_label = label.as_in_context(mx.cpu())
        for i, module in enumerate(self._arcface_modules):
            own = self.global_label - i * self._ctx_num_classes
            module.forward(mx.io.DataBatch([embedding], [own]))

    def backward(self, out_grads=None):
        """Sums over the batch: the optimisers multiply by 1/batch."""
        logits = [m.get_outputs()[0].as_in_context(mx.cpu()) for m in self._arcface_modules]
        probability = mx.nd.softmax(mx.nd.concat(*logits, dim=1))
        total = mx.nd.zeros((self._batch_size, self._emb_size))
        for i, module in enumerate(self._arcface_modules):
            size = self._ctx_num_classes
            part = mx.nd.slice_axis(probability, axis=1, begin=i * size, end=(i + 1) * size)
            part = part - mx.nd.one_hot(self.global_label - i * size, depth=size)
            module.backward(out_grads=[part.as_in_context(module._context[0])])
            total += module.get_input_grads()[0].as_in_context(mx.cpu())
        self._curr_module.backward(out_grads=[total])

    def forward_backward(self, data_batch):
        self.forward(data_batch, is_train=True)
        self.backward()

    def update(self):
        for module in (self._curr_module, *self._arcface_modules):
            module.update()
        mx.nd.waitall()

    def get_outputs(self, merge_multi_context=True):
        return self._curr_module.get_outputs(merge_multi_context=merge_multi_context)

    def fit(
        self, train_data, num_epoch=None, kvstore="local", optimizer=None, initializer=None, arg_params=None,
        aux_params=None, allow_missing=False, batch_end_callback=None,
    ):  # fmt: skip
        assert arg_params is None
        assert aux_params is None
        self.bind(train_data.provide_data, train_data.provide_label)
        self.init_params(
            initializer=initializer, arg_params=None, aux_params=None, allow_missing=allow_missing
        )
        self.init_optimizer(kvstore, optimizer)
        for epoch in range(num_epoch):
            for nbatch, batch in enumerate(train_data):
                self.forward_backward(copy.copy(batch))
                self.update()
                batch_end_callback(
                    BatchEndParam(epoch=epoch, nbatch=nbatch, eval_metric=None, locals=locals())
                )
            train_data.reset()

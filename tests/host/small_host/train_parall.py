"""A small class-parallel trainer with the seams of InsightFace's train_parall.py."""

import logging
import os
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import small  # noqa: F401 - by name, in get_symbol_embedding
import train
import verification
from config import config, default, generate_config
from image_iter import get_face_image_iter

logging.getLogger().setLevel(logging.INFO)
args = None


def parse_args():
    import argparse

    parser = argparse.ArgumentParser()
    for name in ("dataset", "network", "loss"):
        parser.add_argument(f"--{name}", default=default[name])
    parsed, _ = parser.parse_known_args()
    generate_config(parsed.network, parsed.dataset, parsed.loss)
    train.generate_config = lambda *_: None  # the rest of the options is train.py's
    return train.parse_args()


def get_symbol_embedding(embedding=None):
    if embedding is None:
        embedding = globals()[config.net_name].get_symbol()
    return mx.sym.Group([embedding, mx.sym.BlockGrad(mx.sym.Variable("softmax_label"))])


def get_symbol_arcface(args):
    weight = mx.sym.Variable(f"fc7_{args._ctxid}_weight", shape=(args.ctx_num_classes, config.emb_size))
    fc7 = mx.sym.FullyConnected(
        mx.sym.L2Normalization(mx.sym.Variable("data")), mx.sym.L2Normalization(weight),
        num_hidden=args.ctx_num_classes, no_bias=True,
    )  # fmt: skip
    one_hot = mx.sym.one_hot(mx.sym.Variable("softmax_label"), depth=args.ctx_num_classes)
    own = fc7 * one_hot
    moved = mx.sym.cos(mx.sym.arccos(own) + config.loss_m2) * one_hot
    return mx.sym.Group([(fc7 + moved - own) * config.loss_s])


def train_net(args):
    devices = os.environ["CUDA_VISIBLE_DEVICES"].strip()
    ctx = [mx.gpu(i) for i in range(len(devices.split(",")))] if devices else [mx.cpu()]
    prefix = Path(args.models_root, f"{args.network}-{args.loss}-{args.dataset}", "model")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    args.ctx_num, args.emb_size = len(ctx), config.emb_size
    args.batch_size = args.per_batch_size * args.ctx_num
    config.batch_size, config.per_batch_size = args.batch_size, args.per_batch_size
    args.ctx_num_classes = -(-config.num_classes // args.ctx_num)
    arg_params = aux_params = None
    if args.pretrained:
        graph, arg_params, aux_params = mx.model.load_checkpoint(args.pretrained, args.pretrained_epoch)
        esym = get_symbol_embedding(graph)
    else:
        esym = get_symbol_embedding()
    from parall_module_local_v1 import ParallModule

    model = ParallModule(
        context=ctx, symbol=esym, data_names=["data"], label_names=["softmax_label"], asymbol=get_symbol_arcface,
        args=args,
    )  # fmt: skip
    opt, opt_fc7 = (
        mx.optimizer.SGD(
            learning_rate=args.lr, momentum=args.mom, wd=args.wd, rescale_grad=1.0 / args.batch_size
        )
        for _ in range(2)
    )
    steps = [0]
    data_shape = (config.image_shape[2], *config.image_shape[:2])

    def batch_end(param):
        steps[0] += 1
        if steps[0] % args.verbose == 0:
            images = np.random.default_rng(0).integers(0, 256, (2 * args.batch_size, *data_shape))
            print(
                f"[{steps[0]}]XNorm: {verification.test(images, model, args.batch_size, config.val_targets):f}"
            )
            arg, aux = model.get_export_params()
            mx.model.save_checkpoint(
                str(prefix), steps[0], model.symbol.get_internals()["fc1_output"], arg, aux
            )
        if config.max_steps > 0 and steps[0] > config.max_steps:
            # As InsightFace ends: with a graph of the network's name, whatever graph was trained.
            last = globals()[config.net_name].get_symbol()
            mx.model.save_checkpoint(str(prefix), 0, last, *model.get_export_params())
            sys.exit(0)

    data = get_face_image_iter(config, data_shape, str(Path(config.dataset_path, "train.rec")))
    model.fit(
        data, num_epoch=999, kvstore=args.kvstore, optimizer=[opt, opt_fc7],
        initializer=mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2), arg_params=arg_params,
        aux_params=aux_params, allow_missing=True, batch_end_callback=batch_end,
    )  # fmt: skip


def main():
    global args
    args = parse_args()
    train_net(args)


if __name__ == "__main__":
    main()

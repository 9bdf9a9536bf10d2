"""A small trainer with the seams of InsightFace's train.py: the same names, called in the same order."""

import argparse
import logging
import os
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import small  # noqa: F401 - by name, in get_symbol
import verification
from config import config, default, generate_config
from metric import AccMetric, LossValueMetric

logging.getLogger().setLevel(logging.INFO)
args = None


def parse_args():
    parser = argparse.ArgumentParser()
    for name in ("dataset", "network", "loss"):
        parser.add_argument(f"--{name}", default=default[name])
    args, _ = parser.parse_known_args()
    generate_config(args.network, args.dataset, args.loss)
    for name in ("models_root", "pretrained", "lr_steps", "kvstore"):
        parser.add_argument("--" + name.replace("_", "-"), default=default[name])
    for name in ("pretrained_epoch", "ckpt", "verbose", "frequent", "per_batch_size"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default[name])
    for name in ("lr", "wd", "mom"):
        parser.add_argument(f"--{name}", type=float, default=default[name])
    return parser.parse_args()


def get_symbol(args):
    embedding = globals()[config.net_name].get_symbol()
    label = mx.sym.Variable("softmax_label")
    weight = mx.sym.Variable(
        "fc7_weight",
        shape=(config.num_classes, config.emb_size),
        lr_mult=config.fc7_lr_mult,
        init=mx.init.Normal(0.01),
    )
    if config.loss_name == "softmax":
        fc7 = mx.sym.FullyConnected(
            embedding, weight, num_hidden=config.num_classes, no_bias=True, name="fc7"
        )
    else:
        assert (config.loss_m1, config.loss_m3) == (1.0, 0.0)
        unit = mx.sym.L2Normalization(embedding, mode="instance", name="fc1n") * config.loss_s
        fc7 = mx.sym.FullyConnected(
            unit, mx.sym.L2Normalization(weight), num_hidden=config.num_classes, no_bias=True, name="fc7"
        )
        target = mx.sym.pick(fc7, label, axis=1)
        moved = mx.sym.cos(mx.sym.arccos(target / config.loss_s) + config.loss_m2) * config.loss_s
        one_hot = mx.sym.one_hot(label, depth=config.num_classes)
        fc7 = fc7 + mx.sym.broadcast_mul(one_hot, mx.sym.expand_dims(moved - target, 1))
    softmax = mx.sym.SoftmaxOutput(fc7, label, name="softmax", normalization="valid")
    outputs = [mx.sym.BlockGrad(embedding), softmax]
    if config.ce_loss:
        logs = mx.sym.log_softmax(fc7)
        ce = -mx.sym.sum(mx.sym.pick(logs, label, axis=1)) / args.per_batch_size
        outputs.append(mx.sym.BlockGrad(ce))
    return mx.sym.Group(outputs)


def train_net(args):
    devices = os.environ["CUDA_VISIBLE_DEVICES"].strip()
    ctx = [mx.gpu(i) for i in range(len(devices.split(",")))] if devices else [mx.cpu()]
    prefix = Path(args.models_root, f"{args.network}-{args.loss}-{args.dataset}", "model")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    args.ctx_num = len(ctx)
    args.batch_size = args.per_batch_size * args.ctx_num
    config.batch_size, config.per_batch_size = args.batch_size, args.per_batch_size
    data_shape = (config.image_shape[2], *config.image_shape[:2])
    arg_params = aux_params = None
    if args.pretrained:
        _, arg_params, aux_params = mx.model.load_checkpoint(args.pretrained, args.pretrained_epoch)
    sym = get_symbol(args)
    model = mx.mod.Module(context=ctx, symbol=sym)
    from image_iter import get_face_image_iter

    train_dataiter = get_face_image_iter(config, data_shape, str(Path(config.dataset_path, "train.rec")))
    metrics = [mx.metric.create(AccMetric())]
    if config.ce_loss:
        metrics.append(mx.metric.create(LossValueMetric()))
    opt = mx.optimizer.SGD(
        learning_rate=args.lr, momentum=args.mom, wd=args.wd, rescale_grad=1.0 / args.ctx_num
    )
    speed = mx.callback.Speedometer(args.batch_size, args.frequent)
    steps = [0]

    def batch_end(param):
        steps[0] += 1
        if str(steps[0]) in args.lr_steps.split(","):
            opt.lr *= 0.1
            print("lr change to", opt.lr)
        speed(param)
        if steps[0] % args.verbose == 0:
            images = np.random.default_rng(0).integers(0, 256, (2 * args.batch_size, *data_shape))
            print(
                f"[{steps[0]}]XNorm: {verification.test(images, model, args.batch_size, config.val_targets):f}"
            )
            arg, aux = model.get_params()
            symbol = model.symbol
            if config.ckpt_embedding:
                symbol = symbol.get_internals()["fc1_output"]
                arg = {name: array for name, array in arg.items() if not name.startswith("fc7")}
            mx.model.save_checkpoint(str(prefix), steps[0], symbol, arg, aux)
        if config.max_steps > 0 and steps[0] > config.max_steps:
            sys.exit(0)

    model.fit(
        train_dataiter, num_epoch=999, eval_metric=metrics, kvstore=args.kvstore, optimizer=opt,
        initializer=mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2), arg_params=arg_params,
        aux_params=aux_params, allow_missing=True, batch_end_callback=batch_end,
    )  # fmt: skip


def main():
    global args
    args = parse_args()
    train_net(args)


if __name__ == "__main__":
    main()

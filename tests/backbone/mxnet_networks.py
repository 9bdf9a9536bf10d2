"""The networks as MXNet's own `mx.sym` builds them: what ours, written without MXNet, are held against."""

from __future__ import annotations

from ddl_plugin.mxnet_setup import mx

S = mx.sym


def conv(x, name, filters, kernel=1, stride=1, groups=1, act=True):
    pad = 0 if kernel == 7 else kernel // 2
    x = S.Convolution(
        x, num_filter=filters, kernel=(kernel, kernel), stride=(stride, stride), pad=(pad, pad),
        num_group=groups, no_bias=True, name=f"{name}_conv2d",
    )  # fmt: skip
    x = S.BatchNorm(x, fix_gamma=False, momentum=0.9, name=f"{name}_batchnorm")
    return S.LeakyReLU(x, act_type="prelu", name=f"{name}_relu") if act else x


def end(x, emb_size):
    x = S.FullyConnected(x, num_hidden=emb_size, name="pre_fc1")
    return S.BatchNorm(x, fix_gamma=True, eps=2e-5, momentum=0.9, name="fc1")


def pixels():
    return (S.Variable("data") - 127.5) * 0.0078125


def unit(x, name, out, wide, stride):
    x = conv(x, f"{name}_conv_sep", wide)
    x = conv(x, f"{name}_conv_dw", wide, 3, stride, wide)
    return conv(x, f"{name}_conv_proj", out, act=False)


def mobilefacenet(blocks, emb_size):
    def stage(x, name, count, out, wide):
        for i in range(count):
            x = unit(x, f"{name}_block{i}", out, wide, 1) + x
        return x

    x = conv(pixels(), "conv_1", 64, 3, 2)
    x = conv(x, "conv_2_dw", 64, 3, 1, 64) if blocks[0] == 1 else stage(x, "res_2", blocks[0], 64, 64)
    for before, here, out, entering, wide, count in (
        (2, 3, 64, 128, 128, blocks[1]),
        (3, 4, 128, 256, 256, blocks[2]),
        (4, 5, 128, 512, 256, blocks[3]),
    ):
        x = stage(unit(x, f"dconv_{before}{here}", out, entering, 2), f"res_{here}", count, out, wide)
    x = conv(x, "conv_6sep", 512)
    return end(conv(x, "conv_6dw7_7", 512, 7, groups=512, act=False), emb_size)


def tiny(emb_size):
    x = conv(pixels(), "stem", 16, 3, 2)
    x = conv(x, "stage1_down", 32, 3, 2)
    for stage, filters in ((2, 64), (3, 128)):
        x = conv(x, f"stage{stage}_down", filters, 3, 2)
        y = conv(
            conv(x, f"stage{stage}_unit_conv1", filters, 3), f"stage{stage}_unit_conv2", filters, 3, act=False
        )
        x = y + x
    return end(conv(x, "gdc", 128, 7, groups=128, act=False), emb_size)


def built(name, emb_size):
    """The symbol; unnamed operators count from 0, as in a fresh process."""
    with mx.name.NameManager():
        if name == "tiny":
            return tiny(emb_size)
        return mobilefacenet({"y1": (1, 4, 6, 2), "y2": (2, 8, 16, 4)}[name], emb_size)

"""A network of the small trainer: 16x16 pixels, two layers, `pre_fc1` and `fc1` as InsightFace names them."""

import mxnet as mx


def get_symbol():
    x = (mx.sym.Variable("data") - 127.5) * 0.0078125
    x = mx.sym.Pooling(x, kernel=(7, 7), stride=(7, 7), pool_type="avg", name="pool")
    x = mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(2, 2), no_bias=True, name="conv_1_conv2d")
    x = mx.sym.BatchNorm(x, fix_gamma=False, eps=2e-5, momentum=0.9, name="conv_1_batchnorm")
    x = mx.sym.LeakyReLU(x, act_type="prelu", name="conv_1_relu")
    x = mx.sym.FullyConnected(x, num_hidden=16, name="pre_fc1")
    return mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, momentum=0.9, name="fc1")

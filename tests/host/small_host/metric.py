"""What the small trainer's log shows: output 1 is the softmax, the last one the loss."""

import mxnet as mx


class AccMetric(mx.metric.EvalMetric):
    def __init__(self):
        super().__init__("acc")

    def update(self, labels, preds):
        found = mx.nd.argmax(preds[1], axis=1).asnumpy().astype("int32")
        label = labels[0].asnumpy().astype("int32")
        assert found.shape == label.shape
        self.sum_metric += (found == label).sum()
        self.num_inst += len(label)


class LossValueMetric(mx.metric.EvalMetric):
    def __init__(self):
        super().__init__("lossvalue")

    def update(self, labels, preds):
        self.sum_metric += preds[-1].asnumpy()[0]
        self.num_inst += 1

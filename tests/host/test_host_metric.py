"""Means of the terms beside the trainer's own accuracy, as MXNet's metrics are read."""

import pytest

from ddl_plugin.host.metric import shown, with_terms
from ddl_plugin.mxnet_setup import mx


class Accuracy(mx.metric.EvalMetric):
    def __init__(self):
        super().__init__("acc")

    def update(self, labels, preds):
        self.sum_metric += float(preds[0])
        self.num_inst += 1


def test_terms_are_means_since_the_last_reset():
    metric = mx.metric.create(
        with_terms(Accuracy, lambda outputs: {"ddl": outputs[1], "order": -outputs[1]})()
    )
    both = mx.metric.CompositeEvalMetric([metric])
    assert metric.get()[0] == ["acc"]
    for value in (1.0, 2.0, 6.0):
        metric.update([None], [0.5, value])
    assert dict(both.get_name_value()) == {"acc": 0.5, "ddl": 3.0, "order": -3.0}
    # An epoch's, and the Speedometer's after each of its lines.
    for reset, value in ((both.reset, 5.0), (both.reset_local, 7.0)):
        reset()
        metric.update([None], [1.0, value])
        assert dict(both.get_name_value()) == {"acc": 1.0, "ddl": value, "order": -value}


def test_a_log_line_shows_the_parts_and_the_margins():
    names = (
        "ddl",
        "kl_pos",
        "kl_neg",
        "order",
        "mean_pos_easy",
        "mean_neg_easy",
        "margin_easy",
        "intersection_easy",
        "outliers_easy",
    )
    assert shown(names) == ["ddl", "kl_pos", "kl_neg", "order", "margin_easy"]


def test_a_term_that_is_not_a_number_shows():
    metric = with_terms(Accuracy, lambda _: {"ddl": float("nan")})()
    metric.update([None], [1.0])
    assert metric.get()[1][1] != pytest.approx(0)
    assert str(metric.get()[1][1]) == "nan"

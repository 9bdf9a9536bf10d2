"""The Module that trains: a loss over all devices, and the update of one worker among several."""

import dataclasses
import types

import numpy as np
import pytest

from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.loss.reference import ddl_gradient
from ddl_plugin.loss.symbol import training_symbol
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import DDLSettings
from ddl_plugin.training.graph import gathered_loss, training_graph
from ddl_plugin.training.module import StepModule

ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]
DIM, CLASSES = 6, 5
DDL = DDLSettings(b=2, hard=("abs(yaw) > 45",), scope="global")
ROWS = DDL.rows


def pooled_rows(b, devices=2, distributions=2):
    """The row of a batch of several devices' blocks for each row of one block of them all, by plain loops."""
    return [
        device * 3 * b * distributions + 3 * b * k + b * part + i
        for k in range(distributions)
        for part in range(3)
        for device in range(devices)
        for i in range(b)
    ]


def batch(data, label):
    return mx.io.DataBatch([mx.nd.array(data)], [mx.nd.array(label)])


def bound(module, data, label, arrays, aux=None, **options):
    module.bind([("data", data.shape)], [("softmax_label", label.shape)], **options)
    given = {name: mx.nd.array(array) for name, array in arrays.items()}
    module.init_params(arg_params=given, aux_params={n: mx.nd.array(a) for n, a in (aux or {}).items()})
    return module


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(3)
    return types.SimpleNamespace(
        data=rng.normal(0.3, 1, (2 * ROWS, DIM)).astype(np.float32),
        label=rng.integers(0, CLASSES, 2 * ROWS).astype(np.float32),
        arrays={"fc7_weight": rng.normal(0, 1, (CLASSES, DIM)).astype(np.float32)},
    )


# -- a loss over all devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one device", "two devices"])
@pytest.mark.parametrize("scope", ["device", "global"])
def test_the_gradient_that_reaches_the_embedding_is_the_references(sample, contexts, scope):
    """The network is nothing: its gradient is the embedding's. Divided by the devices, as the optimizer does."""
    settings, n = dataclasses.replace(DDL, scope=scope), len(contexts)
    data, label = sample.data[: n * ROWS], sample.label[: n * ROWS]
    symbol = training_symbol(
        mx.sym.Variable("data"), num_classes=CLASSES, emb_size=DIM, settings=settings, gathered=True
    ).symbol
    gathered = GatheredLoss("ddl", settings, {}, devices=n, emb_size=DIM, context=mx.cpu())
    nothing = types.SimpleNamespace(gradients=lambda parts, factor: [mx.nd.zeros_like(x) for x in parts])
    results = []
    for loss in (nothing, gathered):
        module = StepModule(symbol, contexts, gathered=loss)
        bound(module, data, label, sample.arrays, inputs_need_grad=True)
        module.forward(batch(data, label), is_train=True)
        module.backward()
        results.append(module.get_input_grads()[0].asnumpy() / n)
    identity, whole = results
    if scope == "global":
        order = pooled_rows(DDL.b, n)
        expected = np.empty(data.shape)
        expected[order] = ddl_gradient(data[order], dataclasses.replace(DDL, b=n * DDL.b, scope="device"))
    else:
        expected = np.concatenate([ddl_gradient(block, settings) for block in np.split(data, n)]) / n
    assert np.abs(identity).max() > 1e-3 < np.abs(expected).max()
    np.testing.assert_allclose(whole - identity, expected, rtol=1e-4, atol=2e-6)


def test_two_devices_of_scope_global_are_one_device_with_the_same_images(
    settings_of, dataset_of, backbone, fc7
):
    """With BatchNorm's statistics fixed nothing else tells devices apart: terms and the gradient are equal."""
    both = settings_of(ddl={"scope": "global"}, bn_frozen=True)
    alone = settings_of(ddl={"scope": "device", "b": 6}, bn_frozen=True)
    dataset = dataset_of(both)
    rng = np.random.default_rng(0)
    positions = rng.permutation(len(dataset.records))[:36]
    data = np.stack([dataset.records.image(int(p)) for p in positions]).transpose(0, 3, 1, 2)
    label = dataset.records.labels[positions]
    arrays = {**backbone.arg, "fc7_weight": fc7}
    order = pooled_rows(3)

    def gradients(settings, contexts, rows):
        graph = training_graph(settings, backbone, len(fc7), contexts)
        gathered = gathered_loss(settings, backbone.emb_size, contexts)
        assert (gathered is None) == (settings is alone)
        module = StepModule(graph.symbol, contexts, gathered=gathered)
        bound(module, data, label, arrays, backbone.aux)
        module.forward_backward(batch(data[rows], label[rows]))
        group = module._exec_group
        summed = {
            name: sum(array.asnumpy() for array in devices) / len(contexts)
            for name, devices in zip(group.param_names, group.grad_arrays, strict=True)
        }
        if gathered is not None:
            return summed, gathered.terms()
        values = module.get_outputs()[3].asnumpy()[0]
        return summed, dict(zip(graph.term_names, values, strict=True))

    mine, terms = gradients(both, TWO, np.arange(36))
    expected, expected_terms = gradients(alone, ONE, order)
    assert terms == pytest.approx(expected_terms, rel=1e-4, abs=1e-5)
    for name, array in expected.items():
        # Gradients of what comes before a BatchNorm cancel, and single values sit at a kink of the network.
        error = np.linalg.norm(mine[name] - array)
        assert error < 2e-3 * np.linalg.norm(array) + 1e-5, name


def test_out_grads_beside_a_gathered_loss_are_refused(sample):
    gathered = GatheredLoss("ddl", DDL, {}, devices=1, emb_size=DIM, context=mx.cpu())
    symbol = training_symbol(
        mx.sym.Variable("data"), num_classes=CLASSES, emb_size=DIM, settings=DDL, gathered=True
    ).symbol
    module = StepModule(symbol, ONE, gathered=gathered)
    bound(module, sample.data[:ROWS], sample.label[:ROWS], sample.arrays)
    module.forward(batch(sample.data[:ROWS], sample.label[:ROWS]), is_train=True)
    with pytest.raises(ValueError, match="expected no out_grads"):
        module.backward([mx.nd.zeros((ROWS, DIM))])


# -- the update ------------------------------------------------------------------------------------------


def network():
    hidden = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=CLASSES, name="fc")
    hidden = mx.sym.BatchNorm(hidden, fix_gamma=False, name="bn")
    return mx.sym.SoftmaxOutput(hidden, name="softmax")


def arrays_of_network(seed):
    rng = np.random.default_rng(seed)
    arg = {"fc_weight": (CLASSES, DIM), "fc_bias": (CLASSES,), "bn_gamma": (CLASSES,), "bn_beta": (CLASSES,)}
    aux = {"bn_moving_mean": (CLASSES,), "bn_moving_var": (CLASSES,)}
    return tuple({n: rng.uniform(0.5, 1, shape) for n, shape in a.items()} for a in (arg, aux))


def steps(module, sample, optimizer="sgd", params=None, count=3, start=None, state=None):
    """Parameters after `count` steps from a random start."""
    bound(module, sample.data, sample.label, *(start or arrays_of_network(0)))
    module.init_optimizer(kvstore="local", optimizer=optimizer, optimizer_params=params or {})
    if state is not None:
        module.set_optimizer_state(state)
    for _ in range(count):
        module.forward_backward(batch(sample.data, sample.label))
        module.update()
        mx.nd.waitall()  # without it MXNet now and then loses a step's BatchNorm statistics
    return {name: array.asnumpy() for arrays in module.get_params() for name, array in arrays.items()}


MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3, "rescale_grad": 0.25}


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one device", "two devices"])
def test_without_anything_it_is_a_module_like_any_other(sample, contexts):
    usual = steps(mx.mod.Module(network(), context=contexts), sample, params=MOMENTUM)
    mine = steps(StepModule(network(), contexts), sample, params=MOMENTUM)
    for name, array in usual.items():
        np.testing.assert_array_equal(mine[name], array, err_msg=name)


class Twins:
    """Machines that all see the same batch: `workers` times the gradient, summed over the devices."""

    rank, workers = 1, 3

    def __init__(self, start=None):
        self._start = start  # worker 0's parameters
        self.fail = False

    def broadcast(self, arrays):
        if self._start is None:
            return dict(arrays)
        return {name: mx.nd.array(self._start[name]) for name in arrays}

    def sum_gradients(self, names, gradients):
        if self.fail:
            raise ConnectionError
        for devices in gradients:
            total = sum(array.asnumpy() for array in devices) * self.workers
            for array in devices:
                array[:] = mx.nd.array(total)


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one device", "two devices"])
@pytest.mark.parametrize("made", ["here", "by the caller"])
@pytest.mark.filterwarnings("ignore:Optimizer created manually")  # MXNet's, of every rescale_grad but its own
def test_workers_that_see_the_same_make_the_steps_of_one(sample, contexts, made):
    """So rescale_grad is divided by the workers, however the optimizer is given."""

    def optimizer():
        if made == "here":
            return "sgd", MOMENTUM
        names = dict(enumerate(n for n in network().list_arguments() if n not in ("data", "softmax_label")))
        doubled = {i * len(contexts) + k: n for i, n in names.items() for k in range(len(contexts))}
        return mx.optimizer.SGD(param_idx2name=doubled, **MOMENTUM), None

    alone = steps(mx.mod.Module(network(), context=contexts), sample, "sgd", MOMENTUM)
    several = steps(StepModule(network(), contexts, machines=Twins()), sample, *optimizer())
    for name, array in alone.items():
        np.testing.assert_allclose(several[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_usual_rescale_grad_is_divided_too(sample):
    module = StepModule(network(), ONE, machines=Twins())
    steps(module, sample, params={"learning_rate": 0.1}, count=0)
    assert module._optimizer.rescale_grad == pytest.approx(1 / len(sample.data) / Twins.workers)


def test_a_second_optimizer_is_ignored_as_module_has_it(sample):
    module = StepModule(network(), ONE, machines=Twins())
    steps(module, sample, params=MOMENTUM, count=0)
    other = mx.optimizer.SGD(rescale_grad=0.25)
    module.init_optimizer(optimizer=other)
    assert module._optimizer is not other
    assert other.rescale_grad == 0.25


def test_a_change_of_the_optimizers_lr_counts(sample):
    """As trainers' callbacks make it: the update is this worker's own."""
    module = StepModule(network(), ONE, machines=Twins())
    before = steps(module, sample, params=MOMENTUM, count=0)
    module._optimizer.lr = 0.0
    module.forward_backward(batch(sample.data, sample.label))
    module.update()
    np.testing.assert_array_equal(module.get_params()[0]["fc_weight"].asnumpy(), before["fc_weight"])


def test_training_starts_from_worker_0s_parameters_and_statistics(sample):
    arg, aux = arrays_of_network(7)
    mine = steps(StepModule(network(), TWO, machines=Twins({**arg, **aux})), sample, count=0)
    for name, array in {**arg, **aux}.items():
        np.testing.assert_allclose(mine[name], array, rtol=1e-6, err_msg=name)


def test_where_the_sums_do_not_come_nothing_is_updated(sample):
    machines = Twins()
    module = StepModule(network(), TWO, machines=machines)
    before = steps(module, sample, params=MOMENTUM, count=1)
    statistics = module.statistics()
    machines.fail = True
    module.forward_backward(batch(sample.data, sample.label))
    with pytest.raises(ConnectionError):
        module.update()
    module.restore_statistics(statistics)
    module._params_dirty = True
    for arrays in module.get_params():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array.asnumpy(), before[name], err_msg=name)


@pytest.mark.parametrize("machines", [None, Twins()], ids=["one machine", "several"])
def test_the_optimizers_state_goes_on_in_another_module(sample, machines):
    whole = StepModule(network(), TWO, machines=machines)
    expected = steps(whole, sample, params=MOMENTUM, count=4)
    first = StepModule(network(), TWO, machines=machines)
    half = steps(first, sample, params=MOMENTUM, count=2)
    start = [{name: half[name] for name in arrays} for arrays in arrays_of_network(0)]
    second = StepModule(network(), TWO, machines=machines)
    mine = steps(second, sample, params=MOMENTUM, count=2, start=start, state=first.optimizer_state())
    for name, array in expected.items():
        if name not in start[1]:  # statistics are saved as the devices' mean
            np.testing.assert_allclose(mine[name], array, rtol=1e-5, atol=1e-6, err_msg=name)

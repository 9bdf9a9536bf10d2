"""Scope 'global' over processes: two of them, over gloo, against one process on the whole batch."""

import dataclasses

import numpy as np
import pytest
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ddl_plugin.loss import reference
from ddl_plugin.loss.identity import IdentitySettings
from ddl_plugin.pytorch.gathering import gathered, processes
from ddl_plugin.pytorch.identity import IdentityLoss
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import DDLSettings

WORLD, FEATURES, DIM, CLASSES = 2, 7, 5, 4
SETTINGS = DDLSettings(b=2, hard=("abs(yaw) > 45", {"size": 14}), bins=20, scope="global")
ROWS = SETTINGS.rows

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs torch with gloo"
)


def images():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(WORLD * ROWS, FEATURES)) + 0.4, dtype=torch.float32)
    return x, torch.tensor(rng.integers(0, CLASSES, WORLD * ROWS))


def backbone():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(FEATURES, 6), torch.nn.Tanh(), torch.nn.Linear(6, DIM))


def pooled_rows():
    """Row of the gathered batch for each row of the pooled one, by plain loops."""
    order = []
    for k in range(SETTINGS.distributions):
        for part in range(3):
            for process in range(WORLD):
                for i in range(SETTINGS.b):
                    order.append(process * ROWS + 3 * SETTINGS.b * k + part * SETTINGS.b + i)
    return order


CASES = {
    "hardest": SETTINGS,
    "random emd": dataclasses.replace(SETTINGS, neg_mining="random", distance="emd"),
    "device": dataclasses.replace(SETTINGS, scope="device"),
    "compiled": SETTINGS,
}


def a_step(rank, settings, compiled):
    """One step under DDP on this process's rows, and what came of it."""
    x, label = (t[rank * ROWS : (rank + 1) * ROWS] for t in images())
    network = DistributedDataParallel(backbone())
    torch.manual_seed(4)
    identity = DistributedDataParallel(IdentityLoss(CLASSES, DIM, IdentitySettings.preset("arcface")))
    module = DDLLoss(settings)
    if compiled:
        module = torch.compile(module, fullgraph=True, backend="eager")
    embedding = network(x)
    loss, terms = module(embedding)
    (loss + identity(embedding, label).mean()).backward()
    return {
        "loss": loss.detach(), "terms": terms, "gathered": gathered(x), "processes": processes(),
        "gradients": [p.grad for p in (*network.parameters(), *identity.parameters())],
    }  # fmt: skip


def a_process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    found = {name: a_step(rank, settings, name == "compiled") for name, settings in CASES.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(a_process, (str(folder),), nprocs=WORLD)
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    return {name: [one[name] for one in found] for name in CASES}


def on_one_process(settings):
    """Loss and parameter gradients of one process that has all rows."""
    x, label = images()
    network = backbone()
    torch.manual_seed(4)
    identity = IdentityLoss(CLASSES, DIM, IdentitySettings.preset("arcface"))
    embedding = network(x)
    if settings.scope == "global":
        pooled = dataclasses.replace(settings, b=WORLD * settings.b, scope="device")
        loss, terms = DDLLoss(pooled)(embedding[pooled_rows()])
        expected = reference.ddl(embedding.detach().double().numpy()[pooled_rows()], pooled)
        assert loss.item() == pytest.approx(expected["ddl"], rel=1e-5)
    else:
        module = DDLLoss(settings)
        blocks = [module(block) for block in embedding.split(ROWS)]
        loss, terms = (sum(parts) / WORLD for parts in zip(*blocks, strict=True))
    (loss + identity(embedding, label).mean()).backward()
    return loss, terms, [p.grad for p in (*network.parameters(), *identity.parameters())]


@pytest.mark.parametrize("name", [name for name in CASES if name != "device"])
def test_two_processes_are_one_on_the_whole_batch(on_two_processes, name):
    results, settings = on_two_processes[name], CASES[name]
    loss, terms, gradients = on_one_process(settings)
    for found in results:
        assert found["processes"] == WORLD
        assert torch.equal(found["gathered"], images()[0])
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(found["terms"], terms, rtol=1e-5, atol=1e-5)
        for gradient, expected in zip(found["gradients"], gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    assert max(g.abs().max() for g in gradients) > 0.01


def test_with_scope_device_each_process_is_by_itself(on_two_processes):
    results, settings = on_two_processes["device"], CASES["device"]
    loss, _, gradients = on_one_process(settings)
    assert results[0]["loss"] != results[1]["loss"]
    assert np.mean([r["loss"].item() for r in results]) == pytest.approx(loss.item(), rel=1e-5)
    for gradient, expected in zip(results[0]["gradients"], gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    pooled = on_one_process(SETTINGS)[2]
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients, pooled, strict=True))


def test_without_processes_nothing_is_gathered():
    x = torch.ones(3, 2, requires_grad=True)
    assert processes() == 1
    assert gathered(x) is x

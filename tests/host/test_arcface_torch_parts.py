"""The parts that are put into arcface_torch, by themselves."""

import io
import itertools
import json
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from easydict import EasyDict  # noqa: E402

from ddl_plugin.data.records import Records  # noqa: E402
from ddl_plugin.errors import UserError  # noqa: E402
from ddl_plugin.host.arcface_torch import newer_versions  # noqa: E402
from ddl_plugin.host.arcface_torch.base_model import BaseModel  # noqa: E402
from ddl_plugin.host.arcface_torch.batches import Epochs, normalised  # noqa: E402
from ddl_plugin.host.arcface_torch.classifier import start_from_means  # noqa: E402
from ddl_plugin.host.arcface_torch.data import open_data, require_files  # noqa: E402
from ddl_plugin.host.arcface_torch.run import Run, _epoch_steps, _require_classes  # noqa: E402
from ddl_plugin.pytorch.processes import Processes  # noqa: E402
from ddl_plugin.recipe import resolve  # noqa: E402
from ddl_plugin.training.dataset import Dataset  # noqa: E402

CPU = torch.device("cpu")


def build():
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(147, 8))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(build().state_dict(), path)
    return path


def test_images_are_normalised_as_the_trainer_does():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8))
    result = normalised(pixels)
    assert (result.shape, result.dtype, result.is_contiguous()) == ((2, 3, 112, 112), torch.float32, True)
    # ToTensor: / 255 in float32; Normalize: - mean, / std.
    wanted = (pixels.numpy().astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(result.numpy(), wanted.transpose(0, 3, 1, 2))


def test_epochs_go_on_where_the_last_one_ended():
    began = []

    def begin():
        began.append(True)
        return (
            (torch.full((1, 112, 112, 3), step, dtype=torch.uint8), np_label(step))
            for step in itertools.count()
        )

    def np_label(step):
        return torch.tensor([step], dtype=torch.int32)

    batches = Epochs(begin, 3, CPU)
    assert not began  # the trainer says where it starts after it has its loader
    assert len(batches) == 3
    seen = [[int(labels) for _, labels in batches] for _ in range(2)]
    assert seen == [[0, 1, 2], [3, 4, 5]]
    assert began == [True]
    assert next(iter(batches))[1].dtype == torch.int64
    batches.reset()  # as the trainer asks of DALI's
    assert not isinstance(batches, torch.utils.data.DataLoader)  # whose sampler it would ask for


def test_the_base_model_embeds_and_leaves_random_numbers_alone(saved):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    base = BaseModel(str(saved), "small", build, CPU)
    assert torch.equal(torch.rand(3), wanted)
    images = np.random.default_rng(0).integers(0, 256, (70, 112, 112, 3), np.uint8)
    model = build()
    base.load_into(model)
    embedding = base.embed(images)
    assert (embedding.shape, embedding.dtype) == ((70, 8), np.float32)
    alone = model(normalised(torch.from_numpy(images[65:66]))).detach().numpy()
    assert embedding[65:66] == pytest.approx(alone, abs=1e-6)
    assert len(base.fingerprint()) == 16


def test_a_full_checkpoint_of_the_trainer_is_a_base_model_too(saved, tmp_path):
    full = tmp_path / "checkpoint_gpu_0.pt"
    torch.save({"epoch": 1, "state_dict_backbone": torch.load(saved)}, full)
    names = {BaseModel(str(path), "small", build, CPU).fingerprint() for path in (saved, full)}
    assert len(names) == 1


def test_a_base_model_that_does_not_fit_is_refused(saved, tmp_path):
    arrays = torch.load(saved)
    good = dict(arrays)
    cases = {
        "got no 2.bias (1 such) in": {"2.weight": good["2.weight"]},
        "got 9.weight (1 such) in": {**good, "9.weight": good["2.bias"]},
        "got 2.bias of shape (9,) instead of (8,) in": {**good, "2.bias": torch.zeros(9)},
        "2.bias holds NaN": {**good, "2.bias": torch.full((8,), torch.nan)},
        "expected a state dict, names and tensors, got a dict with 'epoch'": {"epoch": 3},
        "expected a state dict, names and tensors, got a Tensor": torch.zeros(3),
    }
    for message, content in cases.items():
        path = tmp_path / "other.pt"
        torch.save(content, path)
        with pytest.raises(UserError) as caught:
            BaseModel(str(path), "small", build, CPU)
        assert message in str(caught.value)
        assert str(caught.value).startswith("config.pretrained: ")


def test_the_classifier_starts_from_means_of_its_own_identities(small_records):
    records = Records(small_records)

    def embed(images):
        return images.reshape(len(images), -1)[:, :40:5].astype(np.float32) - 100

    chosen = np.flatnonzero(np.arange(72) % 6 < 4)
    chosen = chosen[records.labels[chosen] != 7]
    weight = torch.full((5, 8), 0.25)
    start_from_means(weight, 4, records, chosen, embed, progress=False)
    for row, identity in enumerate(range(4, 9)):
        if identity == 7:
            assert (weight[row] == 0.25).all()
            continue
        own = chosen[records.labels[chosen] == identity]
        vectors = np.array([embed(records.image(i)[None])[0] for i in own])
        mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
        assert weight[row].numpy() == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


class Alone(Processes):
    """One process, without a group."""

    rank, workers = 0, 1

    def __init__(self):
        pass

    def publish_bytes(self, content):
        return content


def settings_of(records, **keys):
    run = {
        "dataset_path": str(records),
        "network": "small",
        "fc7_init": "random",
        "ddl": {"b": 3, "hard": [{"darken": (0.2, 0.5)}]},
    }
    return resolve({**run, **keys})


def test_pairs_with_a_model_without_one_and_from_a_file(small_records, saved, tmp_path):
    cache, said = tmp_path / "pairs.npz", []
    settings = settings_of(small_records)
    every = open_data(settings, None, cache, said.append, False, Alone())
    assert [len(pairs.first) for pairs in every.pairs] == [180, 180]  # 12 identities of 6 images
    labels = every.records.labels
    assert (labels[every.pairs[0].first] == labels[every.pairs[0].second]).all()
    assert "no model (config.pretrained)" in said[-1]
    assert not cache.exists()

    base = BaseModel(str(saved), "small", build, CPU)
    kept = open_data(settings, base, cache, said.append, False, Alone())
    for pairs, candidates in zip(kept.pairs, every.pairs, strict=True):
        assert pairs.candidates == len(candidates.first)
    assert cache.is_file()

    named = settings_of(small_records, positive_pairs=str(cache))  # whichever model made it
    read = open_data(named, None, tmp_path / "other.npz", said.append, False, Alone())
    assert np.array_equal(read.pairs[1].first, kept.pairs[1].first)
    with pytest.raises(UserError, match="positive_pairs: expected those of this run, got others"):
        open_data(
            settings_of(small_records, positive_pairs=str(cache), seed=5),
            None,
            cache,
            said.append,
            False,
            Alone(),
        )


def test_a_file_that_holds_no_pairs_is_refused(small_records, tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    for content in (b"", b"PK\x03\x04 cut short", array.getvalue(), b"first,second"):
        path = tmp_path / "pairs.npz"
        path.write_bytes(content)
        settings = settings_of(small_records, positive_pairs=str(path))
        with pytest.raises(UserError, match=r"positive_pairs: expected those of this run"):
            open_data(settings, None, tmp_path / "cache.npz", str, False, Alone())


def test_ranks_talk_through_a_gloo_group_of_their_own(monkeypatch):
    """The trainer's may be NCCL's, which broadcasts nothing that lies in host memory."""
    asked = []
    own = {
        "get_rank": lambda: 0, "get_world_size": lambda: 1,
        "new_group": lambda *, backend, timeout: asked.append((backend, timeout.days)) or "own",
        "broadcast": lambda tensor, source, group=None: asked.append(group),
    }  # fmt: skip
    for name, function in own.items():
        monkeypatch.setattr(torch.distributed, name, function)
    assert Processes.beside_a_trainer().publish([1]) == [1]
    assert asked == [("gloo", 7), "own", "own"]


def test_ranks_that_start_from_other_arrays_are_told(small_records, saved, tmp_path):
    """Each makes its part of the classifier with its own."""

    class Second(Alone):
        rank, workers = 1, 2

        def publish_bytes(self, content):
            return json.dumps({"the arrays of config.pretrained": "others"}).encode()

    base = BaseModel(str(saved), "small", build, CPU)
    with pytest.raises(
        UserError, match=r"the arrays of config.pretrained: expected 'others' as worker 0 has"
    ):
        open_data(settings_of(small_records), base, tmp_path / "pairs.npz", str, False, Second())


@pytest.mark.parametrize(
    ("fc7_init", "resume", "started"),
    [("mean", False, True), ("mean", True, False), ("random", False, False)],
)
def test_the_base_model_leaves_the_device_before_training(fc7_init, resume, started):
    done = []
    base = types.SimpleNamespace(release=lambda: done.append("released"))
    run = types.SimpleNamespace(
        _base=base, _settings=types.SimpleNamespace(fc7_init=fc7_init), _config={"resume": resume},
        _start_from_means=lambda classifier, model: done.append(model),
    )  # fmt: skip
    Run._start_classifier(run, None)
    assert done == ([base] if started else []) + ["released"]


def test_files_that_are_not_there_are_told_before_anything_starts(small_records, tmp_path):
    require_files(settings_of(small_records))
    for keys, message in (
        ({"dataset_path": str(tmp_path)}, r"config.rec: expected a folder with train.rec"),
        ({"attributes": "yaw.npz"}, r"config.attributes: expected a file.*got no file 'yaw.npz'"),
        ({"positive_pairs": "pairs.npz"}, r"config.positive_pairs: expected a file"),
        ({"pretrained": "model.pt"}, r"config.pretrained: expected a file such as model.pt"),
    ):
        with pytest.raises(UserError, match=message):
            require_files(settings_of(small_records, **keys))


def test_classes_and_images_are_checked_against_the_records(small_records):
    records, said = Records(small_records), []
    dataset = Dataset(small_records, records, None, ())
    config = EasyDict(num_classes=12, num_image=72, batch_size=18)
    _require_classes(dataset, config)
    assert _epoch_steps(dataset, config, 2, said.append) == 2
    assert not said
    with pytest.raises(UserError, match=r"config.num_classes: expected 12 at least.*got 11"):
        _require_classes(dataset, EasyDict(config, num_classes=11))
    with pytest.raises(
        UserError, match=r"config.num_image: expected 36 at least, a batch of all ranks, got 35"
    ):
        _epoch_steps(dataset, EasyDict(config, num_image=35), 2, said.append)
    assert _epoch_steps(dataset, EasyDict(config, num_image=100), 1, said.append) == 5
    assert "config.num_image is 100" in said[-1]


def test_schedulers_take_verbose(monkeypatch):
    class Scheduler(torch.optim.lr_scheduler.LRScheduler):
        pass

    monkeypatch.setattr(torch.optim.lr_scheduler, "_LRScheduler", Scheduler)
    newer_versions.accept_verbose()
    newer_versions.accept_verbose()

    class Halved(Scheduler):
        def __init__(self, optimizer):
            super().__init__(optimizer, last_epoch=-1, verbose=False)

        def get_lr(self):
            return [0.5]

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert Halved(optimizer).get_last_lr() == [0.5]

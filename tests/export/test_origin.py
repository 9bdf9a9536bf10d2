import json

import pytest

from ddl_plugin import __version__
from ddl_plugin.export.convert import convert, read_model
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.sameness import same_graph
from ddl_plugin.files import sha256
from ddl_plugin.recipe import describe
from ddl_plugin.settings import DDLSettings, RunSettings
from ddl_plugin.training.output import mark_done

DDL = DDLSettings(b=2, hard=({"size": 14},))


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_files_and_versions(checkpoint):
    files = find_checkpoint(checkpoint)
    found = metadata(read_model(checkpoint))
    assert found["params"] == "model-0000.params"
    assert found["symbol"] == "model-symbol.json"
    assert found["params_sha256"] == sha256(files.params)
    assert found["symbol_sha256"] == sha256(files.symbol)
    assert found["ddl_plugin"] == __version__
    assert "settings" not in found


def test_the_settings_of_a_run_without_its_folders(checkpoint):
    folder = find_checkpoint(checkpoint).params.parent
    settings = RunSettings(
        dataset_path="/home/me/faces", pretrained="../models/y1/model,0", ddl=DDL, seed=7, max_steps=3
    )
    mark_done(folder, settings, {"seconds": 12.3})
    found = json.loads(metadata(read_model(checkpoint))["settings"])
    assert (found["seed"], found["max_steps"], found["loss"]) == (7, 3, settings.loss)
    assert (found["dataset_path"], found["pretrained"]) == ("faces", "model,0")
    assert set(found) < set(describe(settings))
    assert "/" not in "".join(value for value in found.values() if isinstance(value, str))


def test_equal_inputs_give_equal_bytes_wherever_they_lie(checkpoint, tmp_path):
    files = find_checkpoint(checkpoint)
    first = convert(checkpoint, tmp_path / "a.onnx").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    for path in (files.symbol, files.params):
        (tmp_path / "elsewhere" / path.name).write_bytes(path.read_bytes())
    assert convert(tmp_path / "elsewhere", tmp_path / "b.onnx").read_bytes() == first


def test_metadata_is_no_part_of_the_graph(checkpoint):
    """A model that we trained and its base, which we did not, differ in nothing that is run."""
    base = read_model(checkpoint)
    mark_done(
        find_checkpoint(checkpoint).params.parent,
        RunSettings(dataset_path="d", pretrained="p", ddl=DDL),
        {},
    )
    trained = read_model(checkpoint)
    assert metadata(trained) != metadata(base)
    assert same_graph(trained, base) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"3", b'{"settings": 3}', b"\xff"])
def test_a_file_of_somebody_else_is_no_settings(checkpoint, content):
    (find_checkpoint(checkpoint).params.parent / "done.json").write_bytes(content)
    assert "settings" not in metadata(read_model(checkpoint))

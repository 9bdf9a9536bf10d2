import copy
import json

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import (
    Node,
    cut,
    embedding_of,
    find_checkpoint,
    load_symbol,
    model_files,
    parse_symbol,
)


def node(name, op="null", inputs=(), **more):
    return {"name": name, "op": op, "inputs": [list(i) for i in inputs], **more}


SMALL = {
    "nodes": [
        node("data"),
        node("label"),
        node("fc1", "relu", [(0, 0, 0)]),
        node("fc7", "tanh", [(2, 0, 0)]),
        node("loss", "elemwise_add", [(3, 0, 0), (1, 0, 0)]),
    ],
    "heads": [[4, 0, 0]],
}


def test_cut_keeps_what_the_output_needs_and_nothing_else():
    graph = cut(parse_symbol(json.dumps(SMALL), "s.json"))
    assert [n.name for n in graph.nodes] == ["data", "fc1"]
    assert graph.heads == ((1, 0),)
    assert cut(graph) == graph


def test_cut_renumbers_the_edges():
    graph = cut(parse_symbol(json.dumps(SMALL), "s.json"), "loss_output")
    assert [n.name for n in graph.nodes] == ["data", "label", "fc1", "fc7", "loss"]
    shifted = {"nodes": [node("unused"), *copy.deepcopy(SMALL["nodes"])], "heads": [[5, 0, 0]]}
    for raw in shifted["nodes"]:
        raw["inputs"] = [[i + 1, n, v] for i, n, v in raw["inputs"]]
    assert cut(parse_symbol(json.dumps(shifted), "s.json"), "loss_output").nodes == graph.nodes


def test_cut_agrees_with_mxnet(checkpoint, mx):
    path = find_checkpoint(checkpoint).symbol
    internals = mx.sym.load(str(path)).get_internals()
    for output in ("bn0_output", "conv1_output", "pool0_output", "fc1_output"):
        expected = internals[output]
        names = set(expected.list_arguments() + expected.list_auxiliary_states())
        assert set(cut(load_symbol(path), output).variables) == names


def test_missing_output_lists_the_nearest():
    content = json.dumps(SMALL).replace('"fc1"', '"pre_fc1"')
    with pytest.raises(
        UserError, match=r"s\.json: no output 'fc1_output'.*nearest outputs: .*pre_fc1_output"
    ):
        cut(parse_symbol(content, "s.json"))


def test_the_embedding_is_fc1_or_the_only_output():
    assert embedding_of(parse_symbol(json.dumps(SMALL), "s")) == "fc1_output"
    other = json.dumps(SMALL).replace('"fc1"', '"embedding"')
    with pytest.raises(UserError, match=r"s: no output 'fc1_output'"):  # it has a label: the output is a loss
        embedding_of(parse_symbol(other, "s"))
    unlabelled = other.replace('"label"', '"bias"')
    assert embedding_of(parse_symbol(unlabelled, "s")) == "loss_output"
    for heads in ([[4, 0, 0], [3, 0, 0]], [], [[0, 0, 0]], [[4, 1, 0]]):
        content = {**json.loads(unlabelled), "heads": heads}
        with pytest.raises(UserError, match="no output 'fc1_output'"):
            embedding_of(parse_symbol(json.dumps(content), "s"))


def test_places_in_words():
    graph = parse_symbol(json.dumps(SMALL), "s")
    assert graph.place(2) == "node 1 of 3, between 'data' and 'fc7'"
    assert graph.place(3) == "node 2 of 3, between 'fc1' and 'loss'"
    assert graph.place(4) == "node 3 of 3, after 'fc7'"
    alone = {"nodes": [node("zeros", "_zeros")], "heads": [[0, 0]]}
    assert parse_symbol(json.dumps(alone), "s").place(0) == "node 1 of 1"


@pytest.mark.parametrize("key", ["attrs", "attr", "param"])
def test_attributes_of_every_version(key):
    content = {"nodes": [node("data", **{key: {"kernel": "(3L, 5L)"}})], "heads": [[0, 0]]}
    assert parse_symbol(json.dumps(content), "s").nodes[0].wholes("kernel", (1, 1)) == (3, 5)


def test_operator_attributes_win_over_the_users_own():
    raw = node("data", attr={"axis": "7", "mood": "x"}, param={"axis": "1"})
    parsed = parse_symbol(json.dumps({"nodes": [raw], "heads": [[0, 0]]}), "s").nodes[0]
    assert parsed.whole("axis", 0) == 1
    assert parsed.text("mood", "") == "x"


def test_reading_attributes():
    some = Node("n", "Op", {"a": "True", "b": "0", "c": "None", "d": "2e-05", "e": "()", "f": "x"}, ())
    assert some.flag("a", False)
    assert not some.flag("b", True)
    assert some.flag("c", True)
    assert some.flag("missing", True)
    assert some.number("d", 1.0) == 2e-5
    assert some.number("missing", 1e-3) == 1e-3
    assert some.wholes("e", (1, 1)) == (1, 1)
    with pytest.raises(UserError, match=r"node 'n' \(Op\): f: expected a number, got 'x'"):
        some.number("f", 0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken JSON"),
        ("[]", "expected an MXNet symbol"),
        ("{}", "no 'nodes'"),
        ('{"nodes": [1], "heads": []}', "expected an MXNet symbol"),
        ('{"nodes": [{"name": "a", "op": "relu", "inputs": [[0, 0]]}], "heads": []}', "points to node 0"),
    ],
)
def test_broken_symbols(content, message, tmp_path):
    path = tmp_path / "model-symbol.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"model-symbol\.json: .*{message}"):
        load_symbol(path)


def test_a_binary_file_is_no_symbol(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="got a binary file"):
        load_symbol(tmp_path / "a.json")


def test_checkpoint_by_prefix_and_epoch(tmp_path):
    for name in ("m-symbol.json", "m-0000.params", "m-0012.params", "other-0099.params"):
        (tmp_path / name).touch()
    found = find_checkpoint(f"{tmp_path}/m,12")
    assert (found.symbol.name, found.params.name) == ("m-symbol.json", "m-0012.params")
    with pytest.raises(UserError, match=r"m-0003\.params: no such .*epochs of this prefix: 0, 12"):
        find_checkpoint(f"{tmp_path}/m,3")
    with pytest.raises(UserError, match=r"other-symbol\.json: no such symbol file"):
        find_checkpoint(f"{tmp_path}/other,99")


def test_checkpoint_by_folder_is_its_newest_epoch(tmp_path):
    for name in ("model-symbol.json", "model-0002.params", "model-0010.params", "model-0100.params.part"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path).params.name == "model-0010.params"


def test_checkpoint_by_one_of_its_files(tmp_path):
    for name in (
        "m-symbol.json",
        "m-0012.params",
        "two,1-symbol.json",
        "two,1-0000.params",
        "two,1-10000.params",
    ):
        (tmp_path / name).touch()
    found = find_checkpoint(tmp_path / "m-0012.params")
    assert (found.symbol.name, found.params.name) == ("m-symbol.json", "m-0012.params")
    assert find_checkpoint(tmp_path / "m-symbol.json") == found
    assert find_checkpoint(f"{tmp_path}/two,1-10000.params").params.name == "two,1-10000.params"
    assert find_checkpoint(f"{tmp_path}/two,1,10000").params.name == "two,1-10000.params"
    with pytest.raises(UserError, match=rf"did you mean '{tmp_path}/two,1,0' or '{tmp_path}/two,1,10000'\?$"):
        find_checkpoint(tmp_path / "two,1-symbol.json")
    with pytest.raises(UserError, match=rf"did you mean '{tmp_path}/m,12'\?$"):
        find_checkpoint(tmp_path / "m")
    with pytest.raises(
        UserError, match=r"gone-symbol\.json: no such symbol file, needed beside gone-0001\.params"
    ):
        find_checkpoint(tmp_path / "gone-0001.params")


def test_checkpoint_by_folder_under_another_name(tmp_path):
    for name in ("face-symbol.json", "face-0003.params", "face-0007.params"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path).params.name == "face-0007.params"
    for name in ("other-symbol.json", "other-0001.params"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"did you mean '{tmp_path}/face,7' or '{tmp_path}/other,1'\?$"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "model", "model,", "model,x", ",3", "model,-1", "net.params", "net.json"]
)
def test_checkpoint_of_another_form(text):
    with pytest.raises(UserError, match="expected PREFIX,EPOCH"):
        find_checkpoint(text)


def test_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"expected a model-NNNN\.params in this folder, found none$"):
        find_checkpoint(tmp_path)
    for name in ("ddl", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model-symbol.json").touch()
    with pytest.raises(UserError, match=rf"did you mean '{tmp_path}/base' or '{tmp_path}/ddl'\?$"):
        find_checkpoint(tmp_path)


def test_the_files_of_a_model(tmp_path):
    for name in ("model-symbol.json", "model-0002.params"):
        (tmp_path / name).touch()
    assert [path.name for path in model_files(tmp_path)] == ["model-symbol.json", "model-0002.params"]
    assert [path.name for path in model_files("a/b.onnx")] == ["b.onnx"]


def test_an_unreadable_symbol(tmp_path, unreadable):
    (tmp_path / "a.json").write_text("{}")
    with (
        unreadable(tmp_path / "a.json"),
        pytest.raises(UserError, match=r"a\.json: cannot be read \(Permission"),
    ):
        load_symbol(tmp_path / "a.json")

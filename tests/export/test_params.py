import struct

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.export.params import load_params, save_params

TYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    arg = {f"w_{name}": (10 * rng.normal(size=(2, 3, i + 1))).astype(name) for i, name in enumerate(TYPES)}
    return arg, {"bn_moving_mean": rng.normal(size=5).astype(np.float32)}


def prefixed(mx, arg, aux):
    named = {f"arg:{k}": mx.nd.array(v, dtype=v.dtype) for k, v in arg.items()}
    return {**named, **{f"aux:{k}": mx.nd.array(v, dtype=v.dtype) for k, v in aux.items()}}


def same(first, second):
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name])


def packed(*arrays, names=("arg:a",), magic=0x112):
    """A file put together by hand from the bytes of its arrays."""
    text = b"".join(struct.pack("<Q", len(n)) + n.encode() for n in names)
    return (
        struct.pack("<QQQ", magic, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names)) + text
    )


def test_reads_what_mxnet_writes(arrays, tmp_path, mx):
    mx.nd.save(str(tmp_path / "a.params"), prefixed(mx, *arrays))
    arg, aux = load_params(tmp_path / "a.params")
    same(arg, arrays[0])
    same(aux, arrays[1])


def test_writes_the_bytes_that_mxnet_writes(arrays, tmp_path, mx):
    mx.nd.save(str(tmp_path / "mx.params"), prefixed(mx, *arrays))
    save_params(tmp_path / "own.params", *arrays)
    assert (tmp_path / "own.params").read_bytes() == (tmp_path / "mx.params").read_bytes()


def test_strided_and_big_endian_arrays_are_written_in_order(tmp_path, mx):
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    save_params(tmp_path / "a.params", {"a": array}, {})
    np.testing.assert_array_equal(mx.nd.load(str(tmp_path / "a.params"))["arg:a"].asnumpy(), array)


def test_writing_replaces_whole_files_only(arrays, tmp_path):
    path = tmp_path / "a.params"
    save_params(path, *arrays)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="w: MXNet has no element type complex128"):
        save_params(path, {"w": np.zeros(3, complex)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.params"]


@pytest.mark.parametrize("array", [np.float32(1), np.empty((0, 3), np.float32)])
def test_scalars_and_empty_arrays_are_refused(array, tmp_path):
    with pytest.raises(ValueError, match="no scalars and no empty arrays"):
        save_params(tmp_path / "a.params", {"w": array}, {})


DATA = np.arange(6, dtype="<f4")
CONTEXT_GPU1 = struct.pack("<iii", 2, 1, 0)


HEADS = {
    "legacy": struct.pack("<III", 2, 2, 3),
    "V1": struct.pack("<IIqq", 0xF993FAC8, 2, 2, 3),
    "V2": struct.pack("<IiIqq", 0xF993FAC9, 0, 2, 2, 3),
    "V3": struct.pack("<Iiiqq", 0xF993FACA, 0, 2, 2, 3),
}


@pytest.mark.parametrize("version", HEADS)
def test_every_version_of_the_format_and_arrays_from_gpus(version, tmp_path):
    (tmp_path / "a.params").write_bytes(packed(HEADS[version] + CONTEXT_GPU1 + DATA.tobytes()))
    np.testing.assert_array_equal(load_params(tmp_path / "a.params")[0]["a"], DATA.reshape(2, 3))


@pytest.mark.parametrize("version", HEADS)
def test_mxnet_agrees_about_the_bytes_of_every_version(version, tmp_path, mx):
    """Its build without CUDA moves the array to the CPU; V3 needs its NumPy mode."""
    (tmp_path / "a.params").write_bytes(packed(HEADS[version] + CONTEXT_GPU1 + DATA.tobytes()))
    with mx.util.np_shape(version == "V3"):
        loaded = mx.nd.load(str(tmp_path / "a.params"))["arg:a"].asnumpy()
    np.testing.assert_array_equal(loaded, DATA.reshape(2, 3))


def test_mapped_arrays_are_the_file_itself(arrays, tmp_path):
    path = tmp_path / "a.params"
    save_params(path, *arrays)
    arg, aux = load_params(path, mapped=True)
    same(arg, arrays[0])
    same(aux, arrays[1])
    assert not any(array.flags.owndata or array.flags.writeable for array in (*arg.values(), *aux.values()))
    assert all(array.flags.owndata or array.base.flags.owndata for array in load_params(path)[0].values())


def test_v3_scalars(tmp_path):
    path = tmp_path / "a.params"
    path.write_bytes(packed(struct.pack("<Iii", 0xF993FACA, 0, 0) + CONTEXT_GPU1 + DATA[1:2].tobytes()))
    assert load_params(path)[0]["a"].shape == ()
    assert load_params(path)[0]["a"] == 1


def test_truncation_anywhere_is_named(arrays, tmp_path):
    save_params(tmp_path / "whole.params", *arrays)
    content = (tmp_path / "whole.params").read_bytes()
    path = tmp_path / "part.params"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"part\.params: truncated \.params file"):
            load_params(path)
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=r"expected \d+ more bytes for array \d of 8, got \d+"):
        load_params(path)


GOOD = struct.pack("<IiIq", 0xF993FAC9, 0, 1, 1) + CONTEXT_GPU1 + DATA[:1].tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "expected it to begin with 0x112"),
        (packed(struct.pack("<IiIq", 0xF993FAC9, 1, 1, 1)), "dense storage, got sparse storage type 1"),
        (packed(struct.pack("<I", 99)), "at most 32 dimensions, got 99"),
        (packed(struct.pack("<IiIq", 0xF993FAC9, 0, 1, -4)), "dimensions >= 0"),
        (packed(struct.pack("<IiIqiii", 0xF993FAC9, 0, 1, 1, 1, 0, 77)), "element type 0..7, got 77"),
        (packed(struct.pack("<IiIqqiii", 0xF993FAC9, 0, 2, 2**62, 2**62, 1, 0, 0)), "truncated"),
        (packed(GOOD, names=()), "expected 1 names"),
        (packed(GOOD, names=("features.0.weight",)), "'arg:conv0_weight'.*got 'features.0.weight'"),
    ],
)
def test_foreign_and_damaged_files(content, message, tmp_path):
    path = tmp_path / "a.params"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.params.*{message}"):
        load_params(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.params: no such \.params file"):
        load_params(tmp_path / "none.params")


def test_an_unreadable_file(tmp_path, unreadable):
    (tmp_path / "a.params").write_bytes(b"x")
    with (
        unreadable(tmp_path / "a.params"),
        pytest.raises(UserError, match=r"a\.params: cannot be read \(Perm"),
    ):
        load_params(tmp_path / "a.params")

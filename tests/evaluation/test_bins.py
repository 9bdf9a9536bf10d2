import os
import pickle
import pickletools

import cv2
import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import load_bin, write_bin


def picture(value, side=112):
    """A lossless image of one colour, RGB = (value, 100, 200)."""
    bgr = np.full((side, side, 3), (200, 100, value), np.uint8)
    return cv2.imencode(".png", bgr)[1].tobytes()


PICTURES = [picture(v) for v in (10, 20, 30, 40)]
LABELS = [True, False]


def dump(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def python2_pickle(images, labels):
    """What Python 2's cPickle writes at protocol 2: images are `str` objects (SHORT_BINSTRING, BINSTRING)."""
    out = [b"\x80\x02]q\x01("]
    for image in images:
        out.append(b"T" + len(image).to_bytes(4, "little") + image)
    out.append(b"e](")
    out += [b"\x88" if label else b"\x89" for label in labels]
    out.append(b"e\x86.")
    return b"".join(out)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        [1, 0],
        [np.bool_(True), np.bool_(False)],
        [np.int64(1), np.int64(0)],
        np.array(LABELS),
        np.array([1, 0], dtype=np.uint8),
    ],
    ids=["bool", "int", "numpy bool", "numpy int", "bool array", "uint8 array"],
)
def test_every_protocol_and_kind_of_label_is_read(tmp_path, protocol, labels):
    bin_set = load_bin(dump(tmp_path / "lfw.bin", (PICTURES, labels), protocol))
    assert bin_set.name == "lfw"
    assert len(bin_set) == 2
    assert bin_set.issame.dtype == bool
    assert bin_set.issame.tolist() == LABELS
    assert [bytes(image) for image in bin_set.encoded] == PICTURES


def test_a_file_of_python_2_is_read(tmp_path):
    path = tmp_path / "py2.bin"
    path.write_bytes(python2_pickle(PICTURES, LABELS))
    assert "BINSTRING" in {op.name for op, _, _ in pickletools.genops(path.read_bytes())}
    bin_set = load_bin(path)
    assert list(bin_set.encoded) == PICTURES
    assert bin_set.issame.tolist() == LABELS


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_images_that_are_arrays_are_read(tmp_path, protocol):
    """InsightFace's packers of CFP and AgeDB store what cv2.imencode gives."""
    arrays = [np.frombuffer(image, np.uint8) for image in PICTURES]
    arrays[1] = arrays[1].reshape(-1, 1)  # OpenCV before 4.5
    bin_set = load_bin(dump(tmp_path / "cfp_fp.bin", (arrays, np.array(LABELS)), protocol))
    assert bin_set.encoded == PICTURES
    assert bin_set.images(1, 3)[:, 0, 0].tolist() == [[20, 100, 200], [30, 100, 200]]


def test_arrays_of_another_kind_are_no_images(tmp_path):
    arrays = [np.frombuffer(image[: len(image) // 2 * 2], np.int16) for image in PICTURES]
    with pytest.raises(UserError, match="got an array as image 0"):
        load_bin(dump(tmp_path / "x.bin", (arrays, LABELS)))
    floats = [np.zeros(3) for _ in PICTURES]
    with pytest.raises(UserError, match="an array of type 'f8'"):
        load_bin(dump(tmp_path / "x.bin", (floats, LABELS)))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"C\x0f" + bytes(15), "an array of 15 bytes of type 'i8'"),
        (b"J\xff\xff\xff\x7f", "a int as the content"),
    ],
)
def test_an_array_of_a_wrong_content_is_refused(tmp_path, content, message):
    whole = pickle.dumps((PICTURES, np.array([1, 0])), 3)  # protocol 3 has no frames with a length
    stored = b"C\x10" + np.array([1, 0]).tobytes()
    assert whole.count(stored) == 1
    (tmp_path / "x.bin").write_bytes(whole.replace(stored, content))
    with pytest.raises(UserError, match=message):
        load_bin(tmp_path / "x.bin")


def test_images_are_decoded_by_range_as_rgb(tmp_path):
    bin_set = load_bin(dump(tmp_path / "a.bin", (PICTURES, LABELS)))
    images = bin_set.images(1, 3)
    assert images.shape == (2, 112, 112, 3)
    assert images.dtype == np.uint8
    assert images[0, 0, 0].tolist() == [20, 100, 200]
    assert images[1, 5, 5].tolist() == [30, 100, 200]


def test_what_is_written_can_be_read_by_plain_pickle(tmp_path):
    path = tmp_path / "new" / "set.bin"
    write_bin(path, PICTURES, np.array(LABELS))
    assert pickle.loads(path.read_bytes()) == (PICTURES, LABELS)
    assert load_bin(path).issame.tolist() == LABELS
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_file_is_refused_by_name_and_not_executed(tmp_path, protocol):
    touched = tmp_path / "touched"
    value = ([Calls(os.system, f"touch {touched}"), *PICTURES[1:]], LABELS)
    with pytest.raises(UserError, match=r"evil\.bin: .*asks for (posix|nt|os)\.system; nothing was executed"):
        load_bin(dump(tmp_path / "evil.bin", value, protocol))
    assert not touched.exists()


@pytest.mark.parametrize(
    "function, arguments",
    [
        (eval, ("1",)),
        (getattr, (np.dtype, "type")),
        (bytearray, (b"x",)),
        (np.frombuffer, (b"x",)),
        (np.load, ("x.npy",)),
    ],
)
def test_other_globals_are_refused(tmp_path, function, arguments):
    with pytest.raises(UserError, match="it asks for "):
        load_bin(dump(tmp_path / "x.bin", ([Calls(function, *arguments)] * 2, [True]), 2))


def test_an_array_of_objects_is_refused(tmp_path):
    with pytest.raises(UserError, match="an array of type 'O8'"):
        load_bin(dump(tmp_path / "x.bin", (PICTURES, np.array(LABELS, dtype=object))))


def test_a_stand_in_cannot_be_altered(tmp_path):
    """BUILD on a function would set its attributes for every file read later."""
    # encode, then a state (None, {'_function': 1}), BUILD, STOP
    evil = b"\x80\x02c_codecs\nencode\nN}X\x09\x00\x00\x00_functionK\x01s\x86b."
    (tmp_path / "x.bin").write_bytes(evil)
    with pytest.raises(UserError, match="a state for a function"):
        load_bin(tmp_path / "x.bin")
    assert list(load_bin(dump(tmp_path / "a.bin", (PICTURES, LABELS), 2)).encoded) == PICTURES


@pytest.mark.parametrize(
    "value, message",
    [
        ((PICTURES, [True]), "got 4 images and 1 labels"),
        ((PICTURES[:3], LABELS), "got 3 images and 2 labels"),
        (([], []), "at least one pair, got an empty"),
        ([PICTURES], "expected a pair .* got a list"),
        ({"images": PICTURES}, "got a dict"),
        ((PICTURES, "yes"), "labels of type str"),
        (([1, 2], [True]), "got a int as image 0"),
        ((PICTURES, [True, 2]), "got 2 as label 1"),
        ((PICTURES, [True, None]), "got None as label 1"),
    ],
)
def test_a_wrong_structure_is_refused(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        load_bin(dump(tmp_path / "x.bin", value))


def test_damaged_and_other_files_are_refused(tmp_path):
    whole = pickle.dumps((PICTURES, LABELS))
    for i, content in enumerate((b"", b"not a pickle", whole[: len(whole) // 2], b"\xff\xd8\xff\xe0JFIF")):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(content)
        with pytest.raises(UserError, match="got a damaged or other file"):
            load_bin(path)
    with pytest.raises(UserError, match="No such file"):
        load_bin(tmp_path / "none.bin")
    with pytest.raises(UserError, match="directory"):
        load_bin(tmp_path)


@pytest.mark.parametrize("bad", [b"", b"no image", PICTURES[3][:40]])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, bad):
    bin_set = load_bin(dump(tmp_path / "cfp.bin", ([*PICTURES[:3], bad], LABELS)))
    assert len(bin_set.images(0, 3)) == 3
    with pytest.raises(UserError, match=r"image 3 of cfp \(pair 1, second\): expected a JPEG or PNG"):
        bin_set.images(2, 4)


def test_an_image_of_another_size_is_named(tmp_path):
    bin_set = load_bin(dump(tmp_path / "a.bin", ([picture(1, side=96), PICTURES[0]], [True])))
    with pytest.raises(UserError, match=r"image 0 .* expected 112x112 pixels, got 96x96"):
        bin_set.images(0, 2)


def test_writing_needs_two_images_for_each_label(tmp_path):
    with pytest.raises(UserError, match="got 4 images and 1 labels"):
        write_bin(tmp_path / "a.bin", PICTURES, [True])
    assert not (tmp_path / "a.bin").exists()

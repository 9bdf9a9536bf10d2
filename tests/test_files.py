"""Files appear whole or not at all."""

import hashlib
import stat

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.files import replaced, sha256, write_text


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b" / "result.txt"
    with replaced(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), UserError("a check")])
def test_what_interrupts_the_block_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, replaced(path) as temporary:
        temporary.write_text("half")
        raise error
    assert raised.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("short write"), "short write"),
    ],
)
def test_a_full_disk_is_a_users_error(tmp_path, error, reason):
    path = tmp_path / "result.txt"
    path.write_text("old")
    message = rf"result\.txt: cannot be written \({reason}\); what was there is kept"
    with pytest.raises(UserError, match=message), replaced(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=r"expected the name of a file to write, got a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(
        UserError, match=r"file/result\.txt: cannot be written \((Not a directory|File exists)\)"
    ):
        write_text(tmp_path / "file" / "result.txt", "x")
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        write_text(tmp_path / ("x" * 300), "x")


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "λ é\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ é\n".encode()


def test_the_hash_of_a_file_of_several_blocks(tmp_path):
    content = bytes(range(256)) * 8193  # a little more than two of its blocks
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def test_an_unreadable_file_is_a_users_error(tmp_path, unreadable):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    with unreadable(path), pytest.raises(UserError, match=r"a\.bin: cannot be read \(Permission denied\)"):
        sha256(path)
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file or directory\)"):
        sha256(tmp_path / "none")

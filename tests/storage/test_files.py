"""What lies where a file is to be written is never replaced unless certibox made it; errors name the file."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import is_rows
from certibox.storage.files import (
    append_line,
    append_text,
    exclusive,
    parsed,
    read_bytes,
    read_json,
    require_place,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


def link(path: Path) -> None:
    (path.parent / "notes").write_text("mine\n")
    path.symlink_to("notes")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except OSError:
        pytest.skip("this system lets nobody make a device")


KINDS: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": listening,
    "a symbolic link": link,
    "a symbolic link, dangling": dangling,
    "a device": device,
}
WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_bytes_atomic(path, b"new"),
    "JSON": lambda path: write_json_atomic(path, {}),
    "line": lambda path: append_line(path, {}),
    "lock": lambda path: locked(path),
    "place": require_place,
}


def locked(path: Path) -> None:
    with exclusive(path):
        pass


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_written_to(tmp_path: Path, kind: str, writer: str) -> None:
    place = tmp_path / "place"
    KINDS[kind](place)
    before = os.lstat(place)
    with pytest.raises(InvalidInput, match=rf"place is {kind.split(',')[0]}; .*give another place"):
        WRITERS[writer](place)
    after = os.lstat(place)
    assert (after.st_mode, after.st_ino, after.st_size) == (before.st_mode, before.st_ino, before.st_size)
    assert not (tmp_path / "notes").exists() or (tmp_path / "notes").read_text() == "mine\n"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "place")
    if kind == "a symbolic link":  # reading through one is fine
        assert read_bytes(tmp_path / "place") == b"mine\n"
        return
    with pytest.raises(UnreadableFile, match="place"):
        read_bytes(tmp_path / "place")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a directory"])
def test_a_lock_is_taken_on_a_regular_file_alone(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / ".rows.lock")
    with pytest.raises(InvalidInput, match=rf"\.rows\.lock is {kind.split(',')[0]}"):
        locked(tmp_path / "rows")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_replaced_where_it_is_ours_or_empty_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows"
    for older in (None, b"", b'{"idx": 0, "lab', b'{"idx'):
        if older is not None:
            path.write_bytes(older)
        require_place(path, is_rows)
        write_bytes_atomic(path, b"new", is_rows)
        assert path.read_bytes() == b"new"


@pytest.mark.parametrize("theirs", [b"notes\n", b"\x89PNG", b"[1]", b'{"name": "config"}', b"\xff\xfe{\x00"])
def test_a_file_of_others_is_not_replaced(tmp_path: Path, theirs: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(theirs)
    for write in (
        lambda: require_place(path, is_rows),
        lambda: write_bytes_atomic(path, b"new", is_rows),
        lambda: write_text_atomic(path, "new", is_rows),
        lambda: exclusive(path, is_rows).__enter__(),
    ):
        with pytest.raises(InvalidInput, match=r"notes\.txt is a file that certibox did not write"):
            write()
    assert path.read_bytes() == theirs
    assert list(tmp_path.iterdir()) == [path]


def test_lines_and_json_do_not_go_into_other_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    with pytest.raises(InvalidInput, match="did not write"):
        append_line(path, {"a": 1})
    path.write_text("mine: 1\n")
    with pytest.raises(InvalidInput, match="did not write"):
        write_json_atomic(path, {"a": 1})
    assert path.read_text() == "mine: 1\n"


def test_one_of_several_hard_links_is_replaced_and_the_others_keep_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    os.link(tmp_path / "file", tmp_path / "other")
    write_bytes_atomic(tmp_path / "file", b"new")
    assert [(tmp_path / name).read_bytes() for name in ("file", "other")] == [b"new", b"old"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file/below/rows", r"file is no directory"),
        ("file/rows", r"file is no directory"),
        ("dangling/rows", r"dangling is no directory"),
        ("a" * 300, "File name too long"),
        ("a\0b", "null"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_the_work(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    for check in (require_place, lambda place: write_bytes_atomic(place, b"")):
        with pytest.raises(InvalidInput, match=words) as error:
            check(tmp_path / path)
        assert "\n" not in str(error.value)
    assert {item.name for item in tmp_path.iterdir()} == {"file", "dangling"}


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InvalidInput, match="may not be written to"):
        require_place(tmp_path / "new" / "rows")


def test_a_folder_behind_a_link_and_the_longest_name_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    for name in ("rows", "a" * 255):
        write_bytes_atomic(tmp_path / "linked" / name, b"new")
        assert (tmp_path / "real" / name).read_bytes() == b"new"


# ------------------------------------------------------------------------------------------------------- write errors

FAILURES = [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_system_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(number))
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as error:
            write_bytes_atomic(path, b"new")
    assert (error.value.errno, error.value.filename) == (number, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Full:
    """A file on a disk that has room for `room` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_full_disk_keeps_whole_lines_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path, opened = tmp_path / "rows.jsonl", os.fdopen
    append_text(path, '{"a": 1}\n')
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", lambda *args, **settings: Full(opened(*args, **settings), room))
        with pytest.raises(OSError, match="No space left") as error:
            append_text(path, '{"a": 2}\n')
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == '{"a": 1}\n'
    append_text(path, '{"a": 2}\n')
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


# -------------------------------------------------------------------------------------------------------------- locks

UNSUPPORTED = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


def without(monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(fcntl, name, failing(number))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A file that another process writes to, under a lock of each kind."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); fcntl.lockf(f, 2); print(); input()"
    asked = [sys.executable, "-c", code, str(tmp_path / ".rows.lock")]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield tmp_path / "rows"
        other.communicate(b"\n")


@pytest.mark.parametrize("unsupported", [None, *UNSUPPORTED])
def test_two_processes_never_write_one_file(
    held: Path, monkeypatch: pytest.MonkeyPatch, unsupported: int | None
) -> None:
    if unsupported is not None:
        without(monkeypatch, unsupported, "flock")  # the other kind of lock takes over, without a word
    with pytest.raises(InvalidInput, match=r"another process is writing .*rows"), exclusive(held):
        pytest.fail("the file was free")


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_without_any_locks_work_goes_on_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without(monkeypatch, number, "flock")
    with exclusive(tmp_path / "rows"):
        pass
    without(monkeypatch, number, "lockf")
    with pytest.warns(UserWarning, match="rows keeps no locks") as told, exclusive(tmp_path / "rows"):
        append_text(tmp_path / "rows", "{}\n")
    assert len(told) == 1
    assert (tmp_path / "rows").read_text() == "{}\n"


def test_an_error_of_locking_that_is_no_lack_of_locks_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, errno.EIO, "flock")
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))) as error:
        locked(tmp_path / "rows")
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(tmp_path / "rows"))


# --------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b"\xff", "no UTF-8 at byte 0"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"1e999", "1e999 is too large"),
        (b"9" * 5000, "more digits"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' stands twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b" " * ((1 << 24) + 1), "16,777,217 bytes"),
        ("1".encode("utf-16"), "UTF-8"),
    ],
)
def test_json_that_other_readers_refuse_is_refused_in_a_short_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parsed(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"value\.json: not JSON .*{words}"):
        read_json(tmp_path / "value.json")


def test_plain_json_is_what_python_reads() -> None:
    value = {"σ": [1, 0.1 + 0.2, -0.0, None, True, "ℓ2", {}], "2**53": 2**53, "small": 5e-324}
    assert parsed(json.dumps(value).encode()) == value
    assert parsed(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value

"""The spool's file: what survives, what fits, who may have it."""

import errno
import os
from pathlib import Path

import pytest

from server.store import spool
from server.store.spool import SpoolFile, TornFrame, frame, leftovers

HEADER = b"header"


def create(folder: Path, max_bytes: int = 10_000) -> SpoolFile:
    return SpoolFile.create(folder, HEADER, max_bytes=max_bytes)


def adopt(path: Path) -> SpoolFile:
    file = SpoolFile.adopt(path)
    assert file is not None
    return file


def payloads(file: SpoolFile) -> list[bytes]:
    return [payload for _, payload in file.read()]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    file = create(tmp_path / "deep" / "folder")
    assert file.empty
    assert file.append([b"one", b"", b"three" * 100]) == [True, True, True]
    assert file.append([b"four"]) == [True]
    assert payloads(file) == [HEADER, b"one", b"", b"three" * 100, b"four"]
    assert not file.empty
    file.release()
    assert payloads(adopt(file.path)) == [HEADER, b"one", b"", b"three" * 100, b"four"]


def test_only_what_fits_is_taken(tmp_path: Path) -> None:
    file = create(tmp_path, max_bytes=len(frame(HEADER)) + 50)
    assert file.append([b"x" * 20, b"y" * 30, b"z" * 14]) == [True, False, True]
    assert file.append([b""]) == [False]
    assert payloads(file) == [HEADER, b"x" * 20, b"z" * 14]
    assert file.path.stat().st_size == file.size <= len(frame(HEADER)) + 50


def test_clearing_makes_room_but_never_drops_what_came_later(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.append([b"one"])
    (*_, (end, _)) = file.read()
    file.append([b"two"])
    assert not file.clear(end)
    assert payloads(file) == [HEADER, b"one", b"two"]
    assert file.clear(file.size)
    assert file.empty
    file.append([b"three"])
    assert payloads(file) == [HEADER, b"three"]


def test_reading_sees_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.append([b"one"])
    reading = file.read()
    assert next(reading)[1] == HEADER
    file.append([b"two"])
    assert [payload for _, payload in reading] == [b"one"]


@pytest.mark.parametrize("kept", range(1, len(frame(b"second")), 3))
def test_a_torn_tail_is_told_and_hides_nothing_before_it(tmp_path: Path, kept: int) -> None:
    file = create(tmp_path)
    file.append([b"first"])
    whole = file.size
    file.release()
    with file.path.open("ab") as torn:
        torn.write(frame(b"second")[:kept])
    adopted, seen = adopt(file.path), []
    with pytest.raises(TornFrame) as caught:
        seen.extend(payload for _, payload in adopted.read())
    assert caught.value.place == whole
    assert [payload for _, payload in zip(range(2), (p for _, p in adopted.read()), strict=False)] == [HEADER, b"first"]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.append([b"first", b"second"])
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(TornFrame):
        list(file.read())


def test_an_absurd_length_is_no_reason_to_read_beyond_the_end(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.release()
    with file.path.open("ab") as torn:
        torn.write(b"\xff\xff\xff\xff\0\0\0\0abc")
    with pytest.raises(TornFrame):
        list(adopt(file.path).read())


def test_a_living_process_keeps_its_file(tmp_path: Path) -> None:
    file = create(tmp_path)
    assert SpoolFile.adopt(file.path) is None
    file.release()
    again = adopt(file.path)
    assert SpoolFile.adopt(file.path) is None
    again.discard()
    assert SpoolFile.adopt(file.path) is None
    assert leftovers(tmp_path, own=None) == []


def test_leftovers_are_the_files_of_others(tmp_path: Path) -> None:
    assert leftovers(tmp_path / "missing", own=None) == []
    own, other = create(tmp_path), create(tmp_path)
    (tmp_path / "rejected.jsonl").write_text("")
    assert leftovers(tmp_path, own=own.path) == [other.path]


def test_what_is_set_aside_is_kept_under_another_name(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.append([b"first"])
    content = file.path.read_bytes()
    file.set_aside(len(frame(HEADER)))
    assert leftovers(tmp_path, own=None) == []
    assert file.path.with_suffix(".torn").read_bytes() == content


def test_appending_to_a_released_file_fails(tmp_path: Path) -> None:
    file = create(tmp_path)
    file.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append([b"late"])


def test_a_write_that_breaks_off_leaves_only_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes some bytes and then none: the only way to see that here is to stand in for the kernel."""
    file = create(tmp_path)
    file.append([b"first"])
    write = os.pwrite

    def break_off(descriptor: int, content: bytes, place: int) -> int:
        if place > file.size:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, content[:5], place)

    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "pwrite", break_off)
        with pytest.raises(OSError, match="full"):
            file.append([b"second"])
    file.append([b"third"])
    assert payloads(file) == [HEADER, b"first", b"third"]

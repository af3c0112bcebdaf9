"""A segment is a private file whose bytes are there before they are mapped, and that readers can only read."""

from __future__ import annotations

import errno
import mmap
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from solewriter.shared.config import KIB, MIB, POPULATED_AT_ONCE
from solewriter.shared.errors import LayoutMismatch, MemoryFull
from solewriter.shared.memory.segment import Blank, Segment, segment_path

ROOT = os.geteuid() == 0
KERNEL = [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "segment"


def run(code, *args):
    return subprocess.run([sys.executable, "-P", "-c", code, *map(str, args)], capture_output=True, text=True)


# --- private ----------------------------------------------------------------------------------------------------------


def test_a_segment_is_readable_by_its_user_only_whatever_the_umask(path):
    before = os.umask(0)
    try:
        Segment.create(path, 100)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_segment_is_whole_pages_of_zeros_that_are_reserved(path):
    segment = Segment.create(path, mmap.PAGESIZE + 1)
    assert segment.size == len(segment.map) == path.stat().st_size == 2 * mmap.PAGESIZE
    assert path.stat().st_blocks * 512 >= segment.size
    assert not any(segment.words)
    assert len(segment.words) == segment.size // 8


@pytest.mark.skipif(KERNEL < [5, 14], reason="this kernel populates nothing but what it maps")
def test_pages_are_there_at_once_and_are_made_while_other_threads_go_on(path, monkeypatch):
    """What maps them does not let go of the interpreter meanwhile: so it is not asked to."""
    monkeypatch.setattr(mmap, "MAP_POPULATE", 0)
    size = 2 * POPULATED_AT_ONCE + mmap.PAGESIZE
    segment = Segment.create(path, size)
    own = Path("/proc/self/smaps").read_text().split(str(segment.path))[1]
    assert re.search(r"^Rss: +(\d+) kB$", own, re.MULTILINE)[1] == str(size // KIB)


@pytest.mark.parametrize("there", ["a file", "a symlink", "a dangling symlink"])
def test_what_is_there_already_is_never_taken_for_a_new_segment(path, tmp_path, there):
    other = tmp_path / "other"
    if there != "a dangling symlink":
        other.write_bytes(b"mine")
    other.rename(path) if there == "a file" else path.symlink_to(other)
    with pytest.raises(FileExistsError):
        Segment.create(path, 100)
    if there == "a dangling symlink":
        assert not other.exists()
    else:
        assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o666, 0o601])
def test_a_file_that_others_may_open_is_not_mapped(path, mode):
    Segment.create(path, 100)
    path.chmod(mode)
    with pytest.raises(LayoutMismatch, match="private file of this user"):
        Segment.attach(path)
    path.chmod(0o600)
    assert Segment.attach(path).size == mmap.PAGESIZE


@pytest.mark.skipif(not ROOT, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_mapped(path):
    Segment.create(path, 100)
    os.chown(path, 65534, 65534)
    for writable in (False, True):
        with pytest.raises(LayoutMismatch, match="private file of this user"):
            Segment.attach(path, writable=writable)


def test_a_symlink_is_not_followed(path, tmp_path):
    Segment.create(tmp_path / "real", 100)
    path.symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic") as refusal:
        Segment.attach(path)
    assert refusal.value.errno == errno.ELOOP


def test_what_is_no_file_is_neither_mapped_nor_waited_for(path):
    os.mkfifo(path, 0o600)
    with pytest.raises(LayoutMismatch):
        Segment.attach(path)
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(LayoutMismatch):
        Segment.attach(path)


def test_a_segment_that_is_gone_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        Segment.attach(path)


# --- shared -----------------------------------------------------------------------------------------------------------


def test_what_the_writer_stores_is_what_readers_see(path):
    writer = Segment.create(path, 4096)
    reader, other = Segment.attach(path), Segment.attach(path, writable=True)
    writer.words[7] = 2**64 - 1
    other.map[0:4] = b"text"
    assert reader.words[7] == other.words[7] == 2**64 - 1
    assert reader.map[0:4] == writer.map[0:4] == b"text"


def test_another_process_sees_it_too(path):
    writer = Segment.create(path, 4096)
    writer.words[3] = 77
    code = """
import sys
from pathlib import Path
from solewriter.shared.memory.segment import Segment
segment = Segment.attach(Path(sys.argv[1]), writable=True)
segment.words[4] = segment.words[3] + 1
"""
    assert run(code, path).returncode == 0
    assert writer.words[4] == 78


def test_a_reader_cannot_write(path):
    Segment.create(path, 4096)
    reader = Segment.attach(path)
    with pytest.raises(TypeError):
        reader.map[0] = 1
    with pytest.raises(TypeError):
        reader.words[0] = 1
    assert memoryview(reader.map).readonly


def test_not_even_by_its_address(path):
    writer = Segment.create(path, 4096)
    code = """
import ctypes, sys
from pathlib import Path
from solewriter.shared.memory.futex import _address
from solewriter.shared.memory.segment import Segment
segment = Segment.attach(Path(sys.argv[1]))
print("attached", flush=True)
ctypes.memset(_address(segment.map, 0), 1, 1)
"""
    ran = run(code, path)
    assert ran.stdout == "attached\n"
    assert ran.returncode == -signal.SIGSEGV
    assert writer.map[0] == 0


def test_what_was_written_before_it_is_mapped_is_there_and_the_rest_is_zeros(path):
    blank = Blank(path, 3 * mmap.PAGESIZE - 5)
    for offset in (mmap.PAGESIZE, 7):
        blank.write(b"x" * 10, offset)
    blank.write(b"", 0)
    segment = blank.map_whole()
    assert segment.size == path.stat().st_size == 3 * mmap.PAGESIZE
    assert path.stat().st_blocks * 512 >= segment.size, "all of it is reserved"
    assert bytes(segment.bytes) == (bytes(7) + b"x" * 10).ljust(mmap.PAGESIZE, b"\0") + (b"x" * 10).ljust(
        2 * mmap.PAGESIZE, b"\0"
    )
    blank.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        blank.write(b"late", 0)
    assert segment.map[0] == 0


def test_what_is_never_mapped_holds_no_descriptor(path):
    before = os.listdir("/proc/self/fd")
    blank = Blank(path, 100)
    blank.close()
    blank.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_mapping_holds_its_bytes_after_the_file_is_gone(path):
    writer = Segment.create(path, 4096)
    reader = Segment.attach(path)
    path.unlink()
    writer.words[0] = 5
    assert reader.words[0] == 5
    with pytest.raises(FileNotFoundError):
        Segment.attach(path)


def test_a_path_is_the_folder_the_prefix_and_the_parts():
    assert str(segment_path("/dev/shm", "solewriter-ab12", "table", 3, 0, 7)) == "/dev/shm/solewriter-ab12-table-3-0-7"


# --- full -------------------------------------------------------------------------------------------------------------

FILLING = """
import os, sys
from pathlib import Path
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.segment import Blank, Segment
folder = Path(sys.argv[1])
made = []
try:
    while len(made) < 100:
        made.append(Segment.create(folder / f"s{len(made)}", 200_000))
except MemoryFull as error:
    print(error)
for segment in made:  # every byte that was promised is there
    segment.map[:] = b"x" * segment.size
blank = Blank(folder / "blank", 200_000)
try:
    blank.write(bytes(200_000), 0)
except MemoryFull as error:
    print(error)
os.unlink(folder / "blank")
blank.close()
print(len(made), sorted(os.listdir(folder)) == sorted(f"s{number}" for number in range(len(made))))
os.unlink(folder / "s0")
del made[0], segment
try:
    Segment.create(folder / "sparing", 100_000, 200_000)
except MemoryFull as error:
    print((folder / "sparing").exists())
print(Segment.create(folder / "again", 200_000, 4_096).size)
"""
IN_A_SMALL_FILE_SYSTEM = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -P -c "$3" "$1"'


def can_mount():
    return ROOT and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root and mount namespaces")
def test_a_full_file_system_is_an_error_that_names_it_and_never_a_sigbus(tmp_path):
    command = ["unshare", "-m", "sh", "-c", IN_A_SMALL_FILE_SYSTEM, "sh", str(tmp_path), sys.executable, FILLING]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    error, another, made, sparing, again = ran.stdout.splitlines()
    assert another == error
    assert str(tmp_path) in error
    assert "memory_dir" in error
    assert made == "5 True"
    assert sparing == "False", "as much as has to stay free besides was not there"
    assert again == str(-(-200_000 // mmap.PAGESIZE) * mmap.PAGESIZE)


WITHOUT_FILES = """
import os, sys
from pathlib import Path
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.segment import Segment

folder = Path(sys.argv[1])
made = [Segment.create(folder / f"s{number}", 4_096) for number in range(2)]
try:
    Segment.create(folder / "s2", 4_096)
except MemoryFull as error:
    print(error)
os.unlink(folder / "s0")
del made[0]
print(Segment.create(folder / "s2", 4_096).size)
"""
WITH_THREE_INODES = IN_A_SMALL_FILE_SYSTEM.replace("size=1m", "nr_inodes=3")


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root and mount namespaces")
def test_a_file_system_that_may_have_no_more_files_is_full_though_it_has_room(tmp_path):
    """Whoever gets MemoryFull refuses one request and goes on."""
    command = ["unshare", "-m", "sh", "-c", WITH_THREE_INODES, "sh", str(tmp_path), sys.executable, WITHOUT_FILES]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    error, again = ran.stdout.splitlines()
    assert f"no room for another file (`df -i`) in {tmp_path}" in error
    assert again == "4096"


def test_a_bound_on_the_size_of_files_is_an_error_that_names_it_and_not_the_writers_death(path, files_at_most):
    """`ulimit -f` holds in memory file systems, too. Whoever gets MemoryFull refuses one request and goes on."""
    with files_at_most(mmap.PAGESIZE):
        with pytest.raises(MemoryFull, match="ulimit -f"):
            Segment.create(path, 2 * mmap.PAGESIZE)
        left = path.exists()
        blank = Blank(path, 2 * mmap.PAGESIZE)
        with pytest.raises(MemoryFull, match="ulimit -f"):
            blank.write(bytes(2 * mmap.PAGESIZE), 0)
    blank.close()
    assert not left


def test_a_bound_on_what_a_process_maps_is_not_told_as_a_full_file_system(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 64 * MIB, hard))
    try:
        with pytest.raises(MemoryFull, match="ulimit -v") as told:
            Segment.create(path, 128 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "free space" not in told.value.message
    assert not path.exists()


def test_more_than_any_file_system_has_leaves_nothing_behind(path):
    with pytest.raises((MemoryFull, OSError)):
        Segment.create(path, 2**62)
    assert not path.exists()

"""Disks that are really full. Skipped where nothing may be mounted."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.real import small_disk
from chaos.real.processes import source_path
from chaos.real.small_disk import SmallDisk, sweep

REASON = small_disk.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no disks of our own: {REASON}")

SIZE_BYTES = 1 << 20


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "a node" / "root"  # the list of mounts writes a space as \040
    root.mkdir(parents=True, mode=0o700)
    (root / "settings.json").write_text("{}")
    return root


def test_the_disk_has_what_the_root_had_and_the_root_keeps_what_the_disk_had(root):
    with SmallDisk(root, size_bytes=SIZE_BYTES):
        assert root.is_mount()
        assert root.stat().st_mode & 0o777 == 0o700
        assert (root / "settings.json").read_text() == "{}"
        (root / "sub").mkdir()
        (root / "sub" / "data").write_text("kept")
        (root / "settings.json").unlink()
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(root / "control.sock"))
    assert not root.is_mount()
    assert sorted(path.name for path in root.rglob("*")) == ["data", "sub"]
    assert (root / "sub" / "data").read_text() == "kept"


def test_a_full_disk_takes_no_byte_until_it_is_freed(root):
    with SmallDisk(root, size_bytes=SIZE_BYTES) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space") as refused:
            (root / "more").write_bytes(bytes(5_000))
        assert refused.value.errno == errno.ENOSPC
        disk.free()
        disk.free()
        (root / "more").write_bytes(bytes(5_000))
    assert not (root / "ballast").exists()


def test_some_space_may_be_left(root):
    with SmallDisk(root, size_bytes=SIZE_BYTES) as disk:
        disk.fill(free_bytes=64 << 10)
        (root / "first").write_bytes(bytes(40 << 10))
        with pytest.raises(OSError, match="No space"):
            (root / "second").write_bytes(bytes(40 << 10))


def test_a_disk_that_is_full_already_may_be_filled(root):
    with SmallDisk(root, size_bytes=SIZE_BYTES) as disk:
        disk.fill()
        disk.fill(free_bytes=4_096)


def test_the_disks_of_a_killed_process_are_swept_and_those_of_living_ones_stay(root, tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from chaos.real.small_disk import SmallDisk; "
        "SmallDisk(Path(sys.argv[1]), size_bytes=1 << 20).__enter__(); os.kill(os.getpid(), 9)"
    )
    other = tmp_path / "living"
    other.mkdir()
    with SmallDisk(other, size_bytes=SIZE_BYTES):
        subprocess.run([sys.executable, "-c", code, str(root)], check=False, env={"PYTHONPATH": source_path()})
        assert root.is_mount()
        assert str(root) in sweep()
        assert not root.is_mount()
        assert other.is_mount()


def test_no_mount_is_left_when_the_content_is_too_large(root):
    (root / "large").write_bytes(os.urandom(2 * SIZE_BYTES))
    with pytest.raises(OSError, match="No space"), SmallDisk(root, size_bytes=SIZE_BYTES):
        pass
    assert not Path(root).is_mount()
    assert (root / "large").stat().st_size == 2 * SIZE_BYTES

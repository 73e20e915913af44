"""The host's facts are those of the root. Method: made-up mounts, a real folder."""

from __future__ import annotations

from pathlib import Path

from node.host_facts import NETWORK_FILE_SYSTEMS, disk_bytes, file_system_of, open_files, permissions_of

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:50 / /srv rw shared:2 master:9 - nfs4 nas:/export rw
31 30 8:2 / /srv/local\\040disk rw - xfs /dev/sdb1 rw
32 21 8:3 / /data rw - ext4 /dev/sdc1 rw
33 21 8:4 / /data rw - btrfs /dev/sdd1 rw
nonsense
"""


def test_the_innermost_and_latest_mount_holds_a_path():
    assert file_system_of(Path("/home/x"), MOUNTS) == "ext4"
    assert file_system_of(Path("/srv/relaymesh"), MOUNTS) == "nfs4"
    assert file_system_of(Path("/srv/local disk/root"), MOUNTS) == "xfs"
    assert file_system_of(Path("/srvother"), MOUNTS) == "ext4"
    assert file_system_of(Path("/data"), MOUNTS) == "btrfs"
    assert file_system_of(Path("/x"), "") is None
    assert "nfs4" in NETWORK_FILE_SYSTEMS


def test_a_real_folder_has_a_file_system_permissions_and_a_size(tmp_path):
    tmp_path.chmod(0o750)

    assert file_system_of(tmp_path)
    assert permissions_of(tmp_path) == 0o750
    assert (disk_bytes(tmp_path) or 0) > 0
    assert (permissions_of(tmp_path / "none"), disk_bytes(tmp_path / "none")) == (None, None)
    used, limit = open_files()
    assert used is not None
    assert 0 < used < limit

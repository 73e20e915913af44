"""Files appear whole, privately, and never over one another by accident."""

from __future__ import annotations

import pytest

from node import durable_files


def test_a_new_file_is_private_and_complete(tmp_path):
    durable_files.write_new(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_new_file_never_replaces_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        durable_files.write_new(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_replacing_is_one_step_and_private(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o644)
    durable_files.replace(tmp_path / "file", b"new")
    durable_files.replace(tmp_path / "other", b"first")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(durable_files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        durable_files.replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_content_is_durable_before_it_has_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    events = []
    real = durable_files.os.fsync

    def fsync(descriptor):
        events.append((tmp_path / "file").exists())
        real(descriptor)

    monkeypatch.setattr(durable_files.os, "fsync", fsync)
    durable_files.write_new(tmp_path / "file", b"content")
    assert events == [False, True]

"""A node's root in a folder, and back: what survives the loss of every disk.

An export is consistent while the node runs, and lists a digest of each of its files; keys stay out unless they are
asked for. An import checks everything before it writes, and makes a root that is no copy of the old one: its first
start takes a new origin (the marker beside the database is never exported, and removed where a database is replaced)
and opens a new cluster epoch.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import apsw
import msgspec

from mesh.errors import ConfigError
from node import durable_files, identity_files
from node.root_lock import root_lock
from node.storage import set_aside
from node.storage.backup import RESTORED_META, back_up
from node.storage.database import DAMAGE, DISK_ERRORS, DamagedError, open_connection, secure_log, unusable
from node.storage.migrate import applied_version, check_migrations, load_migrations

DATABASE = "relaymesh.db"
SETTINGS = "relaymesh-settings.json"
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 1 << 16

_READ_BYTES = 1 << 20
_EXPORTED = (DATABASE, SETTINGS, identity_files.IDENTITY_FILE)
_Count = Annotated[int, msgspec.Meta(ge=0)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a snapshot. Only names that an export writes are accepted: no path leads elsewhere."""

    name: Literal["relaymesh.db", "relaymesh-settings.json", "identity.json"]
    bytes: _Count
    blake2b: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot consists of."""

    schema_version: Literal["relaymesh.snapshot.v2"] = "relaymesh.snapshot.v2"
    created_at_ms: _Count
    cluster: str
    node_id: str
    database_schema: _Count
    files: Annotated[list[FileEntry], msgspec.Meta(min_length=1, max_length=len(_EXPORTED))]


@dataclass(frozen=True, slots=True)
class Replaced:
    """What took a database's place, and where that one is kept."""

    manifest: Manifest
    kept: Path


def export(root: Path, out: Path, *, with_identity: bool, now_ms: int) -> Manifest:
    """Copy a root, whose node may be running, into the new folder `out`. ConfigError; `out` is then gone again."""
    enrolment = identity_files.load(root)
    if enrolment is None or not (root / DATABASE).exists():
        raise ConfigError(f"{root} holds no node: give the --root of one that ran before")
    try:
        out.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {out}: {error.strerror}; give --out a new folder") from None
    try:
        schema = _copy_database(root / DATABASE, out / DATABASE)
        for name in (SETTINGS, *((identity_files.IDENTITY_FILE,) if with_identity else ())):
            if (root / name).exists():
                durable_files.write_new(out / name, (root / name).read_bytes())
        manifest = Manifest(
            created_at_ms=now_ms,
            cluster=enrolment.identity().cluster.hex(),
            node_id=enrolment.name,
            database_schema=schema,
            files=[_entry(out / name) for name in _EXPORTED if (out / name).exists()],
        )
        durable_files.write_new(out / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    except BaseException as error:
        shutil.rmtree(out)
        if isinstance(error, OSError):
            raise ConfigError(f"cannot write the snapshot: {error.strerror}. Nothing was left") from None
        raise
    return manifest


def restore(source: Path, root: Path) -> Manifest:
    """Make the new folder `root` from a snapshot; ConfigError, and no root, when anything in it does not hold."""
    manifest = check(source)
    try:
        root = root.resolve()
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ConfigError(f"{root} is no empty folder: give --root a new one. Nothing was changed")
    except OSError as error:
        raise ConfigError(f"cannot use {root}: {error.strerror}; give another --root. Nothing was changed") from None
    staged = root.with_name(f".{root.name}.restoring")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700, parents=True)
        for entry in manifest.files:
            if entry.name == DATABASE:
                _restore_database(source, staged / DATABASE, manifest)
            else:
                durable_files.write_new(staged / entry.name, (source / entry.name).read_bytes())
        staged.rename(root)  # onto an empty folder, or none
        durable_files.sync_directory(root.parent)
    except OSError as error:
        raise ConfigError(f"cannot make {root}: {error.strerror}. Nothing was left") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest


def replace(source: Path, root: Path) -> Replaced:
    """Let a snapshot's database take the place of that of the stopped node under `root`, which is kept.

    Identity, settings and what is known of trust stay those of `root`. ConfigError, with the old database in its place,
    when the snapshot does not hold, is another node's, or when the node runs. Interrupted anywhere, one of the two
    databases is there; see `set_aside.exchange`.
    """
    manifest = check(source)
    enrolment = identity_files.load(root)
    database = root / DATABASE
    if enrolment is None or not database.exists():
        raise ConfigError(f"{root} holds no node whose database could be replaced: leave out --replace")
    cluster = enrolment.identity().cluster.hex()
    if (manifest.cluster, manifest.node_id) != (cluster, enrolment.name):
        raise ConfigError(
            f"the snapshot is of node {manifest.node_id} of mesh {manifest.cluster[:16]}, and {root} of node "
            f"{enrolment.name} of mesh {cluster[:16]}: give another --in. Nothing was changed"
        )
    staged = root / f"{DATABASE}.restoring"
    with root_lock(root):
        try:
            set_aside.drop_second_names(database)
            _remove(staged)
            _restore_database(source, staged, manifest)
            durable_files.sync_directory(root)
            _move_log(database)
            return Replaced(manifest, set_aside.exchange(database, staged))
        except OSError as error:
            raise ConfigError(f"cannot replace {database}: {error.strerror}. The old one stays") from None
        finally:
            _remove(staged)


def check(source: Path) -> Manifest:
    """The manifest of a snapshot whose every file is as it was written, else ConfigError."""
    try:
        with (source / MANIFEST).open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
        if len(data) > MANIFEST_BYTES_MAX:
            raise ConfigError(f"{source / MANIFEST} is too large to be a manifest: give --in a snapshot")
        manifest = msgspec.json.decode(data, type=Manifest)
        if DATABASE not in [entry.name for entry in manifest.files]:
            raise ConfigError(f"the snapshot {source} has no database: make it again")
        for entry in manifest.files:
            if (source / entry.name).is_symlink() or _entry(source / entry.name) != entry:
                raise ConfigError(f"{source / entry.name} was altered since the snapshot was made: take another copy")
    except OSError as error:
        raise ConfigError(f"cannot read the snapshot {source}: {error.filename}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source / MANIFEST} is no manifest of this release: {error}") from None
    return manifest


def _copy_database(source: Path, target: Path) -> int:
    connection = open_connection(source, "", read_only=True)
    try:
        back_up(connection, target)
        return applied_version(connection)
    except DISK_ERRORS as error:
        raise unusable(source, error) from None
    finally:
        connection.close()


def _restore_database(source: Path, target: Path, manifest: Manifest) -> None:
    shutil.copyfile(source / DATABASE, target)  # large, and made durable by the checkpoint
    target.chmod(0o600)
    _mark_restored(target, manifest)


def _remove(database: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _move_log(database: Path) -> None:
    """Move the log into the database, if this is sound; a damaged one is kept as it is, beside its log."""
    try:
        secure_log(database, "")
        connection = open_connection(database, "")
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            connection.close()
    except (DamagedError, *DAMAGE):
        return
    except DISK_ERRORS as error:
        raise unusable(database, error) from None


def _mark_restored(database: Path, manifest: Manifest) -> None:
    try:
        connection = open_connection(database, "")
        try:
            check_migrations(connection, load_migrations())
            text = f"restored from a snapshot of {manifest.node_id}"
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (RESTORED_META, text.encode()))
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            connection.close()
    except (*DISK_ERRORS, apsw.SQLError) as error:
        raise unusable(database, error) from None


def _entry(path: Path) -> FileEntry:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    assert path.name in _EXPORTED, path
    return msgspec.convert({"name": path.name, "bytes": path.stat().st_size, "blake2b": digest.hexdigest()}, FileEntry)

"""Unix sockets at paths of any length. No loop: the synchronous CLI client dials with it too.

The kernel takes at most 107 bytes of socket path, and a node's root may be deeper. A path that is too long is reached
through its directory's entry in /proc/self/fd.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, without its closing zero


@contextmanager
def listening_local(path: Path, *, backlog: int = 128) -> Iterator[socket.socket]:
    """A listening socket at `path`, open to its owner only (mode 0600), whose file is removed at the end.

    A socket file that nobody listens on any more is replaced. ConfigError when somebody does, or when the place
    cannot be used.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        try:
            _clear_place(path)
            with _reachable(path) as name:
                listener.bind(name)
            # Before listen() nobody can connect, so no one slips in while the mode is still the umask's.
            path.chmod(0o600)
            listener.listen(backlog)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot listen on {path}: {reason}; give a --root that this user may write") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _clear_place(path: Path) -> None:
    if path.exists() and not path.is_socket():
        raise ConfigError(f"{path} is in the way of the control socket: move it, or give another --root")
    if _answers(path):
        raise ConfigError(f"{path} answers: another relaymesh-node runs on this root; stop it or give another --root")
    path.unlink(missing_ok=True)


def connect_local(path: Path, *, timeout_s: float | None = None) -> socket.socket:
    """A connected blocking socket; OSError when nobody listens at `path`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        with _reachable(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


def _answers(path: Path) -> bool:
    try:
        connect_local(path, timeout_s=1.0).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except TimeoutError:
        return True  # its backlog is full: busy, but alive
    return True


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of `path` that fits a socket address, valid inside the block."""
    name = os.fspath(path)
    if len(os.fsencode(name)) <= SOCKET_PATH_BYTES_MAX:
        yield name
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)

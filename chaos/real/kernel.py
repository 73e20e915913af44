"""Linux as Python 3.11 does not offer it: network namespaces, tun devices in them, mounts, and dying with a parent.

Every call here needs a right that a plain user lacks (but for `die_with_parent`), and raises OSError with the kernel's
reason. A user who may make namespaces of his own has all of these rights inside `unshare -rnm`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a child must not import

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_MNT_DETACH = 2
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8916, 0x891C, 0x8922
_IFF_UP = 0x1
_IFREQ = struct.Struct("16s24s")

TUN = Path("/dev/net/tun")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends. For use between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def new_network() -> int:
    """Move the calling thread, and no other, into a new network without any device that is up; its descriptor.

    A network lives as long as something is in it or holds its descriptor: nothing is left of it after a crash.
    """
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter_network(descriptor: int) -> Callable[[], None]:
    """What moves the process that calls it into that network. For use between fork and exec: nothing but a call."""

    def enter() -> None:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            os._exit(126)  # the command must not start elsewhere

    return enter


def open_tun(name: str) -> int:
    """A new device of the calling thread's network, by a descriptor that reads and writes whole IP packets."""
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = struct.pack("H22x", _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def set_address(name: str, address: str, netmask: str, mtu_bytes: int) -> None:
    """Give a device of the calling thread's network an IPv4 address, and start it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _change(control, _SIOCSIFADDR, name, _sockaddr(address))
        _change(control, _SIOCSIFNETMASK, name, _sockaddr(netmask))
        _change(control, _SIOCSIFMTU, name, struct.pack("i20x", mtu_bytes))
    set_up(name)


def set_up(name: str) -> None:
    """Start a device of the calling thread's network; harmless when it is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = _change(control, _SIOCGIFFLAGS, name, bytes(24))
        (flags,) = struct.unpack_from("H", answer, 16)
        if not flags & _IFF_UP:
            _change(control, _SIOCSIFFLAGS, name, struct.pack("H22x", flags | _IFF_UP))


def mount_memory(source: str, place: Path, size_bytes: int) -> None:
    """Mount a file system of this size, held in memory, on a directory. `source` is its name in the list of mounts."""
    options = f"size={size_bytes},mode=0700".encode()
    _check(_libc.mount(source.encode(), os.fsencode(place), b"tmpfs", 0, options), f"mount {place}")


def unmount(place: Path) -> None:
    """Take a mount away at once, even when files on it are open."""
    _check(_libc.umount2(os.fsencode(place), _MNT_DETACH), f"unmount {place}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _change(control: socket.socket, request: int, name: str, value: bytes) -> bytes:
    return fcntl.ioctl(control, request, _IFREQ.pack(name.encode(), value))


def _sockaddr(address: str) -> bytes:
    return struct.pack("HH4s16x", socket.AF_INET, 0, socket.inet_aton(address))

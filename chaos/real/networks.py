"""Where the nodes of a cluster live: addresses of their own, apart from those of every other cluster of this host."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Callable
from typing import Protocol

from mesh.errors import ConfigError, UnavailableError

GOSSIP_PORT = 17888
_CLAIM_PORT = 17887  # bound on the .254 of a cluster's network for as long as the cluster lives
_CLAIM_HOST = 254
_CLAIM_TRIES = 64


class Network(Protocol):
    """Where the nodes of one cluster live."""

    def host(self, number: int) -> str:
        """The address of the n-th node, counted from 1; ConfigError when there is no room for it."""
        ...

    def enter(self, host: str) -> Callable[[], None] | None:
        """What the process of the node with this address calls between fork and exec, if anything."""
        ...

    def release(self) -> None:
        """Give everything back. The cluster calls this when its processes are gone."""
        ...


class LoopbackNetwork:
    """A /24 of 127.0.0.0/8 that no other cluster uses, claimed by a bound port on its last address."""

    def __init__(self) -> None:
        draws = random.Random(secrets.randbits(64))
        for _ in range(_CLAIM_TRIES):
            # 127.0.x.y and the low second octets are left to people and resolvers (127.0.0.53, 127.0.1.1).
            prefix = f"127.{draws.randint(16, 250)}.{draws.randint(1, 250)}"
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind((f"{prefix}.{_CLAIM_HOST}", _CLAIM_PORT))
                self._check_unused(f"{prefix}.1")
            except OSError:
                claim.close()
                continue
            self._prefix, self._claim = prefix, claim
            return
        raise UnavailableError(
            f"no free network 127.x.y.0/24 found in {_CLAIM_TRIES} tries: are too many nodes running?"
        )

    def host(self, number: int) -> str:
        """The address of the cluster's n-th node, counted from 1."""
        if not 1 <= number < _CLAIM_HOST:
            raise ConfigError(f"a cluster has at most {_CLAIM_HOST - 1} nodes")
        return f"{self._prefix}.{number}"

    def enter(self, host: str) -> None:
        """Loopback is everywhere."""

    def release(self) -> None:
        """Give the network back."""
        self._claim.close()

    @staticmethod
    def _check_unused(host: str) -> None:
        # Nodes that outlived their cluster hold no claim, but they hold their port.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, GOSSIP_PORT))

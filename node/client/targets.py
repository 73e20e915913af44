"""Which nodes a client asks: the one of this host, by its control socket, or peers, by TLS with an identity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import ConfigError
from mesh.ids import Address, parse_address
from node.admin_client import LocalTarget, PeerTarget

PEERS_MAX = 16

StrPath = str | os.PathLike[str]


def choose_targets(
    root: StrPath | None, peer: str | Sequence[str] | None, identity: StrPath | None
) -> list[LocalTarget] | list[PeerTarget]:
    """Where to ask, best first. ConfigError when nothing usable was named, or the identity cannot be read."""
    if peer is None:
        if root is None:
            raise ConfigError(
                'no node was named: give root="DIR" (the node of this host) or peer="HOST:PORT" (any node)'
            )
        if not Path(root).is_dir():
            raise ConfigError(f"root {root} is not a directory: give the root of a relaymesh-node on this host")
        return [LocalTarget(Path(root))]
    parts = peer.split(",") if isinstance(peer, str) else list(peer)
    addresses = [parse_address(part) for part in parts if part.strip()]
    if not 0 < len(addresses) <= PEERS_MAX:
        raise ConfigError(f"peer takes 1 to {PEERS_MAX} addresses HOST:PORT: with commas between, or as a list")
    if identity is None and root is not None:
        identity = Path(root) / "identity.json"
    if identity is None:
        raise ConfigError(
            "peer needs to know who you are: give identity=FILE (made by `relaymesh mesh enroll --mesh DIR --operator "
            "NAME --out FILE`), or root=DIR of a node on this host to use its identity"
        )
    return peer_targets(addresses, Path(identity))


def peer_targets(addresses: Sequence[Address], identity: Path) -> list[PeerTarget]:
    """These addresses, to be asked with the identity in an enrolment file. ConfigError when that is none."""
    if not identity.is_file():
        raise ConfigError(f"identity {identity} does not exist: give an enrolment file made by `relaymesh mesh enroll`")
    from node.identity_files import read_enrolment  # brings in the cryptography library
    from node.streams.tls import client_context

    material = read_enrolment(identity).tls_material
    context = client_context(material)
    return [PeerTarget(address, material.cluster, context) for address in addresses]

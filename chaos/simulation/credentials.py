"""The keys of a simulated mesh: one certificate authority, one ring, and an identity for whoever asks.

Promise: everything follows from the seed, so equal runs send equal bytes. Nothing here is secret.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaos.simulation.seeds import stream
from mesh.identity import Identity, cluster_id, issue
from mesh.sealing import SECRET_BYTES, KeyRing, KeyState, RingKey

_ED25519_SEED_BYTES = 32


class Credentials:
    """What `relaymesh init` and the enrolments would have made."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.ca_key = self.key("ca")
        self.ca_public_key = self.ca_key.public_key().public_bytes_raw()
        self.cluster = cluster_id(self.ca_public_key)
        """The eight bytes that name this mesh."""
        self.ring = KeyRing([RingKey(stream(seed, "ring").randbytes(SECRET_BYTES), KeyState.PRIMARY)])

    def identity(self, node_id: str, enrolment: int = 1) -> Identity:
        """The certificate and key of one enrolment of a node; the same whenever it is asked for."""
        key = self.key(f"{node_id} {enrolment}")
        certificate = issue(
            self.ca_key,
            cluster=self.cluster,
            role="node",
            name=node_id,
            enrolment=enrolment,
            public_key=key.public_key().public_bytes_raw(),
        )
        return Identity(certificate=certificate, private_key=key, ca_public_key=self.ca_public_key)

    def key(self, name: str) -> Ed25519PrivateKey:
        """A signing key that belongs to this name."""
        return Ed25519PrivateKey.from_private_bytes(stream(self._seed, f"key {name}").randbytes(_ED25519_SEED_BYTES))

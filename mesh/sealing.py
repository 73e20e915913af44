"""Sealed datagrams: a fixed header, an encrypted body and a MAC over both, under a ring of shared keys.

Promises: `Sealer.open` looks at nothing but the size, the version and the key id before the MAC held, which it compares
in constant time. Bytes from strangers can only raise PacketError. One process never uses a nonce twice, and a cloned
disk started twice does not share nonces either. What a seal does NOT prove is which member sent the packet: every
member holds the ring. Anything that matters is signed inside (`mesh.records`).

    header (50 bytes)    version, flags, key id, cluster, sender tag, sender life, sequence, receiver tag
    body                 msgpack, AES-256-GCM with the header as associated data
    mac (16 bytes)       HMAC-SHA256 over everything before it, truncated
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import ConfigError, PacketError

# 1,280 bytes is IPv6's smallest MTU; minus its headers and room for a tunnel, a datagram is never fragmented.
# One lost fragment loses the whole datagram, so large datagrams multiply the loss of a bad link.
PACKET_BYTES_MAX = 1_200
VERSION = 1  # of header and seal alone; what is said inside has a version of its own, see mesh.protocol
SECRET_BYTES = 32

_HEADER = struct.Struct("!BBI8s16sQQI")
HEADER_BYTES = _HEADER.size
MAC_BYTES = 16
GCM_TAG_BYTES = 16
PACKET_OVERHEAD_BYTES = HEADER_BYTES + MAC_BYTES + GCM_TAG_BYTES
BODY_BYTES_MAX = PACKET_BYTES_MAX - PACKET_OVERHEAD_BYTES

_ENCRYPTED = 0x01

# A sequence is a random number of the process above a counter. 36 bits of counter last two years at 1,000 packets a
# second; 28 bits of process make two starts of one cloned disk differ but for one chance in 268 million.
PROCESS_BITS = 28
_COUNTER_BITS = 64 - PROCESS_BITS
_COUNTER_MAX = (1 << _COUNTER_BITS) - 1

PACKET_KEYS_CACHED_MAX = 4_096  # derived keys, one per (ring key, sender, life)

REASONS: tuple[str, ...] = (
    "truncated",
    "oversized",
    "version",
    "unknown-key",
    "bad-mac",
    "wrong-cluster",
    "unsealable",
    "self",
    "wrong-receiver",
    "stale-life",
    "replayed",
    "malformed",
    "unknown-sender",
)
"""Every label that a PacketError or a PacketRefused effect carries."""


class KeyState(enum.Enum):
    """Where a ring key stands in a rotation: it is installed everywhere first, then used, then kept for stragglers."""

    INSTALLED = "installed"
    PRIMARY = "primary"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True)
class RingKey:
    """One shared secret of 32 bytes."""

    secret: bytes = field(repr=False)
    state: KeyState
    retiring_since_ms: int = 0
    """When a RETIRING key became that, by the clock of whoever retired it; 0 for all others."""
    key_id: int = field(init=False)
    """Names the key on the wire without telling anything about it."""

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise ConfigError(f"a ring key has {SECRET_BYTES} bytes, this one has {len(self.secret)}")
        digest = hashlib.blake2b(self.secret, digest_size=4, person=b"relaymesh-keyid").digest()
        object.__setattr__(self, "key_id", int.from_bytes(digest, "big"))


class KeyRing:
    """The keys a node accepts, one of which it seals with. ConfigError unless exactly one key is PRIMARY.

    `number` counts the rings of a mesh, see `mesh.key_rotation`; the ring that it began with is number 0.
    """

    def __init__(self, keys: Iterable[RingKey], *, number: int = 0) -> None:
        self.number = number
        listed = tuple(keys)
        self._by_id = {key.key_id: key for key in listed}
        if len(self._by_id) != len(listed):
            raise ConfigError("the key ring names one key twice")
        primaries = [key for key in listed if key.state is KeyState.PRIMARY]
        if len(primaries) != 1:
            raise ConfigError(f"the key ring has {len(primaries)} primary keys; exactly one must be primary")
        self.primary = primaries[0]

    def get(self, key_id: int) -> RingKey | None:
        """The key with this id, in whatever state."""
        return self._by_id.get(key_id)

    def __iter__(self) -> Iterator[RingKey]:
        return iter(self._by_id.values())

    def keys(self) -> tuple[RingKey, ...]:
        """All keys, in the order given."""
        return tuple(self._by_id.values())


@dataclass(frozen=True, slots=True)
class SealedPacket:
    """What a datagram said, after its MAC held. `sender` is a claim that any member could make."""

    sender: bytes
    life: int
    sequence: int
    receiver: int
    body: bytes

    @property
    def process(self) -> int:
        """The random number of the sending process."""
        return self.sequence >> _COUNTER_BITS


def receiver_tag(tag: bytes, life: int) -> int:
    """Four bytes that name one life of a receiver: packets captured for an earlier life do not fit a later one.

    Never 0, which on the wire means "whoever listens here".
    """
    digest = hashlib.blake2b(tag + life.to_bytes(8, "big"), digest_size=4, person=b"relaymesh-to").digest()
    return int.from_bytes(digest, "big") or 1


class PacketKeys:
    """The keys derived from ring keys, remembered. They follow from their ring key alone, so engines may share them."""

    def __init__(self, cluster: bytes) -> None:
        self._cluster = cluster
        self._mac_keys: dict[int, bytes] = {}
        self._ciphers: dict[tuple[int, bytes, int], AESGCM] = {}

    def mac(self, key: RingKey, sealed: bytes) -> bytes:
        """The MAC of a whole packet under this ring key."""
        mac_key = self._mac_keys.get(key.key_id)
        if mac_key is None:
            mac_key = self._mac_keys[key.key_id] = _derived(key.secret, b"mac", b"")
        return hmac.digest(mac_key, sealed, "sha256")[:MAC_BYTES]

    def cipher(self, key: RingKey, sender: bytes, life: int) -> AESGCM:
        """What encrypts the bodies of one life of a sender."""
        # A key per sender and life keeps every (key, nonce) pair unique although all members share the ring.
        wanted = (key.key_id, sender, life)
        cipher = self._ciphers.get(wanted)
        if cipher is None:
            if len(self._ciphers) >= PACKET_KEYS_CACHED_MAX:
                del self._ciphers[next(iter(self._ciphers))]
            context = self._cluster + sender + life.to_bytes(8, "big")
            cipher = self._ciphers[wanted] = AESGCM(_derived(key.secret, b"body", context))
        return cipher


class Sealer:
    """Seals packets of one process, and opens those of others."""

    def __init__(
        self,
        *,
        ring: KeyRing,
        cluster: bytes,
        sender: bytes,
        life: int,
        process: int,
        encrypt: bool = True,
        keys: PacketKeys | None = None,
    ) -> None:
        assert 0 <= process < 1 << PROCESS_BITS, process
        self.ring = ring
        self._cluster = cluster
        self._sender = sender
        self._life = life
        self._process = process
        self._counter = 0
        self._flags = _ENCRYPTED if encrypt else 0
        self._keys = keys or PacketKeys(cluster)

    def begin_life(self, life: int) -> None:
        """Seal as this life of the same sender. Its keys are its own, and the sequence goes on."""
        self._life = life

    def seal(self, body: bytes, receiver: int) -> bytes:
        """The datagram for this body. `receiver` is a `receiver_tag`, or 0 when the receiver's life is unknown."""
        assert len(body) <= BODY_BYTES_MAX, len(body)
        assert self._counter < _COUNTER_MAX
        self._counter += 1
        key = self.ring.primary
        sequence = self._process << _COUNTER_BITS | self._counter
        header = _HEADER.pack(
            VERSION, self._flags, key.key_id, self._cluster, self._sender, self._life, sequence, receiver
        )
        if self._flags & _ENCRYPTED:
            body = self._keys.cipher(key, self._sender, self._life).encrypt(_nonce(sequence), body, header)
        sealed = header + body
        packet = sealed + self._keys.mac(key, sealed)
        assert len(packet) <= PACKET_BYTES_MAX, len(packet)
        return packet

    def open(self, data: bytes) -> SealedPacket:
        """The packet inside, or PacketError. Replay, receiver and content are the caller's to check."""
        if len(data) < HEADER_BYTES + MAC_BYTES:
            raise PacketError("truncated")
        if len(data) > PACKET_BYTES_MAX:
            raise PacketError("oversized")
        version, flags, key_id, cluster, sender, life, sequence, receiver = _HEADER.unpack_from(data)
        if version != VERSION:
            raise PacketError("version", f"its packets have form {version}, and this release reads form {VERSION} only")
        key = self.ring.get(key_id)
        if key is None:
            raise PacketError("unknown-key")
        if not hmac.compare_digest(self._keys.mac(key, data[:-MAC_BYTES]), data[-MAC_BYTES:]):
            raise PacketError("bad-mac")
        # From here on the bytes come from somebody who holds the ring.
        if cluster != self._cluster:
            raise PacketError("wrong-cluster")
        if life >> 63:
            raise PacketError("malformed")
        body = data[HEADER_BYTES:-MAC_BYTES]
        if flags & _ENCRYPTED:
            try:
                body = self._keys.cipher(key, sender, life).decrypt(_nonce(sequence), body, data[:HEADER_BYTES])
            except (InvalidTag, ValueError):  # ValueError: shorter than a tag
                raise PacketError("unsealable") from None
        return SealedPacket(sender, life, sequence, receiver, body)


def _nonce(sequence: int) -> bytes:
    return sequence.to_bytes(12, "big")


def _derived(secret: bytes, purpose: bytes, context: bytes) -> bytes:
    # Keyed BLAKE2b is a PRF; the purpose in its personalisation keeps MAC and cipher keys apart.
    return hashlib.blake2b(context, digest_size=32, key=secret, person=b"rm-" + purpose).digest()

"""Items to packet bodies and back: plain msgpack, decoded typed.

Promises: a body is a msgpack array of `[kind, payload]`. Any bytes either decode or raise PacketError("malformed"); an
unknown kind is skipped, a known kind that does not fit its type refuses the whole body. `encode` of what `decode`
returned gives the same items again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mesh.errors import PacketError
from mesh.messages import (
    CLAIM_BYTES_MAX,
    Ack,
    Claim,
    Digest,
    Item,
    Nack,
    Outline,
    Ping,
    PingRequest,
    Rumor,
    SignedRecord,
    VectorHint,
)

ITEMS_MAX = 64  # of one packet; the smallest item takes 4 bytes, so only a hostile packet comes near

# Numbers on the wire: never reuse one, never change what it means.
_KINDS: dict[type[Item], int] = {
    Ping: 1,
    Ack: 2,
    PingRequest: 3,
    Nack: 4,
    SignedRecord: 5,
    Claim: 6,
    Digest: 7,
    VectorHint: 8,
    Rumor: 9,
    Outline: 10,
}

_encode = msgspec.msgpack.Encoder().encode
# Payloads stay undecoded until their kind is known; that is what lets unknown kinds pass.
_body_decoder = msgspec.msgpack.Decoder(list[tuple[int, msgspec.Raw]])
_decoders: dict[int, msgspec.msgpack.Decoder[Item]] = {
    number: msgspec.msgpack.Decoder(kind) for kind, number in _KINDS.items()
}
_claim_decoder = msgspec.msgpack.Decoder(Claim)

BODY_OVERHEAD_BYTES = 3  # the array header, at its longest


def encode_claim(claim: Claim) -> bytes:
    """A claim as the payload of a rumor."""
    return _encode(claim)


def decode_claim(payload: bytes) -> Claim:
    """The claim in a rumor's payload. PacketError when it is none."""
    # Elements beyond those that we know are skipped, so a claim of any size would decode, and be passed on whole.
    if len(payload) > CLAIM_BYTES_MAX:
        raise PacketError("malformed")
    try:
        return _claim_decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        raise PacketError("malformed") from None


def encode_item(item: Item) -> bytes:
    """One item as it appears in a body; its length is what it takes of a packet."""
    return _encode((_KINDS[type(item)], item))


def join_items(encoded: Sequence[bytes]) -> bytes:
    """A body of items that `encode_item` made."""
    assert len(encoded) <= ITEMS_MAX, len(encoded)
    count = len(encoded)
    header = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return header + b"".join(encoded)


def encode(items: Iterable[Item]) -> bytes:
    """The body that says these items in this order."""
    return join_items([encode_item(item) for item in items])


def decode(body: bytes) -> list[Item]:
    """The items of a body, unknown kinds left out. PacketError when it is not a body within the limits."""
    try:
        parts = _body_decoder.decode(body)
        if len(parts) > ITEMS_MAX:
            raise PacketError("malformed")
        return [_decoders[kind].decode(raw) for kind, raw in parts if kind in _decoders]
    # RecursionError: a thousand nested arrays fit in one packet.
    except (msgspec.DecodeError, RecursionError):
        raise PacketError("malformed") from None

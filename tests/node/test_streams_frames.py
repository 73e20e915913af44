"""Frames carry messages through any cutting of the byte stream, and nothing else gets through."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import FrameError, LimitError
from node.streams.frames import (
    FRAME_BYTES_MAX,
    LOCAL_CLUSTER,
    MESSAGE_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    FrameDecoder,
    encode_frames,
    encode_message,
)

CLUSTER = b"cluster1"


def decode_all(decoder: FrameDecoder, data: bytes) -> list[bytes]:
    decoder.feed(data)
    return list(iter(decoder.next_message, None))


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=10))
def test_messages_arrive_whole_however_the_network_cuts_them(messages, cuts):
    decoder = FrameDecoder(CLUSTER)
    data = b"".join(encode_message(CLUSTER, message) for message in messages)
    arrived = []
    position = 0
    while position < len(data):
        size = cuts[len(arrived) % len(cuts)]
        arrived += decode_all(decoder, data[position : position + size])
        position += size
    assert arrived == messages
    assert not decoder.mid_message


@pytest.mark.parametrize(
    ("size", "frames"),
    [
        (0, 1),
        (1, 1),
        (PAYLOAD_BYTES_MAX - 1, 1),
        (PAYLOAD_BYTES_MAX, 1),
        (PAYLOAD_BYTES_MAX + 1, 2),
        (3 * PAYLOAD_BYTES_MAX, 3),
    ],
)
def test_a_large_message_spans_frames_of_the_largest_size(size, frames):
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    cut = list(encode_frames(CLUSTER, message))
    assert len(cut) == frames
    assert all(len(frame) == FRAME_BYTES_MAX for frame in cut[:-1])
    assert len(cut[-1]) <= FRAME_BYTES_MAX
    assert decode_all(FrameDecoder(CLUSTER), b"".join(cut)) == [message]


def test_the_wire_form_is_fixed():
    assert encode_message(CLUSTER, b"hello").hex() == "00000005" + CLUSTER.hex() + "00" + b"hello".hex()
    first = next(encode_frames(LOCAL_CLUSTER, bytes(PAYLOAD_BYTES_MAX + 1)))
    assert first[:13].hex() == f"{PAYLOAD_BYTES_MAX:08x}" + "00" * 8 + "01"


def test_a_message_at_the_limit_passes_and_one_past_it_does_not():
    limit = 3 * PAYLOAD_BYTES_MAX + 5
    whole = bytes(limit)
    data = encode_message(CLUSTER, whole, message_bytes_max=limit)
    assert decode_all(FrameDecoder(CLUSTER, message_bytes_max=limit), data) == [whole]
    with pytest.raises(LimitError, match=str(limit)):
        encode_frames(CLUSTER, bytes(limit + 1), message_bytes_max=limit)
    with pytest.raises(FrameError, match="grows past"):
        decode_all(FrameDecoder(CLUSTER, message_bytes_max=limit), encode_message(CLUSTER, bytes(limit + 1)))


def test_the_default_limit_holds_the_largest_submit():
    assert MESSAGE_BYTES_MAX > 16 * 1024 * 1024
    with pytest.raises(LimitError):
        encode_message(CLUSTER, bytes(MESSAGE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (struct.pack("!I8sB", 1, b"cluster2", 0), "another mesh"),
        (struct.pack("!I8sB", PAYLOAD_BYTES_MAX + 1, CLUSTER, 0), "announces"),
        (struct.pack("!I8sB", 2**32 - 1, CLUSTER, 1), "announces"),
        (struct.pack("!I8sB", 1, CLUSTER, 2), "unknown flags"),
        (struct.pack("!I8sB", 0, CLUSTER, 1), "promises more"),
        (b"GET / HTTP/1.1\r\n", "not RelayMesh"),
    ],
)
def test_a_bad_header_is_judged_before_its_payload_comes(header, says):
    decoder = FrameDecoder(CLUSTER)
    decoder.feed(header)
    with pytest.raises(FrameError, match=says):
        decoder.next_message()


def test_a_frame_of_the_largest_payload_passes():
    header = struct.pack("!I8sB", PAYLOAD_BYTES_MAX, CLUSTER, 0)
    assert decode_all(FrameDecoder(CLUSTER), header + bytes(PAYLOAD_BYTES_MAX)) == [bytes(PAYLOAD_BYTES_MAX)]


@given(st.binary(max_size=100), st.integers(0, 30))
def test_random_bytes_raise_nothing_but_frame_errors(noise, prefix):
    decoder = FrameDecoder(CLUSTER)
    data = encode_message(CLUSTER, b"abcdefghij")[:prefix] + noise
    try:
        messages = decode_all(decoder, data)
    except FrameError:
        return
    assert sum(len(message) for message in messages) <= len(data)


def test_a_begun_message_is_visible():
    decoder = FrameDecoder(CLUSTER)
    data = encode_message(CLUSTER, bytes(PAYLOAD_BYTES_MAX + 10))
    for end in (5, 20, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 3):
        decoder = FrameDecoder(CLUSTER)
        assert decode_all(decoder, data[:end]) == []
        assert decoder.mid_message


def test_the_synchronous_client_needs_no_trio():
    modules = "node.streams.frames, node.streams.tls, node.streams.local_socket, node.streams.rpc_messages"
    script = f"import {modules}, sys; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0

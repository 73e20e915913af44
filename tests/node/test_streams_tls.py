"""Who a verified certificate speaks for, and identities that cannot be used."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, FrameError, RecordError
from node.streams.tls import PeerName, TlsMaterial, failure_text, make_contexts, parse_san_uri, peer_name, san_uri

CLUSTER = bytes(range(8))
URI = san_uri(CLUSTER, "node", "node-a", 7)


def certificate(*names: tuple[str, str]) -> dict[str, object]:
    return {"subjectAltName": names}


@given(
    st.binary(min_size=8, max_size=8),
    st.sampled_from(["node", "operator"]),
    st.text(min_size=1, max_size=64).filter(lambda name: name.encode("utf-8", "ignore").decode() == name),
    st.integers(1, 2**24 - 1),
)
def test_every_holder_survives_its_uri(cluster, role, name, enrolment):
    uri = san_uri(cluster, role, name, enrolment)
    assert uri.isascii()
    assert parse_san_uri(uri) == PeerName(cluster, role, name, enrolment)


@given(st.text(max_size=80))
def test_no_other_text_names_a_holder(text):
    with pytest.raises(RecordError):
        parse_san_uri(text)


@pytest.mark.parametrize(
    "uri", [URI + "\n", URI.upper(), URI.replace("/7", "/07"), URI.replace("node/", "root/"), URI + "/x"]
)
def test_a_uri_has_one_form(uri):
    with pytest.raises(RecordError):
        parse_san_uri(uri)


def test_a_certificate_names_one_member_of_this_mesh():
    assert peer_name(certificate(("URI", URI)), CLUSTER) == PeerName(CLUSTER, "node", "node-a", 7)
    assert peer_name(certificate(("DNS", "x.example"), ("URI", URI)), CLUSTER).name == "node-a"
    for bad in (None, {}, certificate(), certificate(("DNS", "node-a")), certificate(("URI", URI), ("URI", URI))):
        with pytest.raises(RecordError, match="one member"):
            peer_name(bad, CLUSTER)
    with pytest.raises(RecordError, match="belongs to cluster 0001020304050607"):
        peer_name(certificate(("URI", URI)), bytes(8))


def test_an_unusable_identity_is_explained_without_its_secrets():
    with pytest.raises(ConfigError, match="enroll the host anew") as caught:
        make_contexts(TlsMaterial(CLUSTER, "no certificate", "secret text", "no ca"))
    assert "secret text" not in str(caught.value)


def test_a_failure_is_told_by_its_innermost_cause():
    def wrapped(cause: BaseException) -> RuntimeError:
        error = RuntimeError("wrapper")
        error.__cause__ = cause
        return error

    assert failure_text(wrapped(OSError(111, "Connection refused"))) == "Connection refused"
    assert failure_text(wrapped(ExceptionGroup("many", [OSError(113, "No route to host")]))) == "No route to host"
    assert failure_text(TimeoutError()) == "TimeoutError"
    ours = FrameError("in our words")
    ours.__cause__ = ValueError("in theirs")
    assert failure_text(wrapped(ours)) == "in our words"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming = ssl.MemoryBIO()
    incoming.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="x").do_handshake()
    assert failure_text(wrapped(caught.value)) == "wrong version number"

"""TLS certificates hold only for their CA, their key and their holder."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.errors import RecordError
from node.x509_certificates import ca_public_key, check_leaf, load_private_key, make_ca, make_leaf, private_key_pem

URI = "relaymesh:0011223344556677/node/node-a/1"
CA_KEY, KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CA = make_ca(CA_KEY, name="a mesh")
LEAF = make_leaf(CA_KEY, CA, public_key=KEY.public_key(), name="node-a", uri=URI)
PUBLIC = KEY.public_key().public_bytes_raw()


def test_a_leaf_holds_for_its_ca_key_and_holder():
    check_leaf(CA, LEAF, public_key=PUBLIC, uri=URI)
    assert ca_public_key(CA) == CA_KEY.public_key().public_bytes_raw()


def test_a_leaf_of_another_ca_with_the_same_name_is_refused():
    impostor = make_leaf(Ed25519PrivateKey.generate(), CA, public_key=KEY.public_key(), name="node-a", uri=URI)
    with pytest.raises(RecordError, match="not signed by the mesh's CA"):
        check_leaf(CA, impostor, public_key=PUBLIC, uri=URI)


def test_a_leaf_for_another_key_or_holder_is_refused():
    with pytest.raises(RecordError, match="another key"):
        check_leaf(CA, LEAF, public_key=bytes(32), uri=URI)
    with pytest.raises(RecordError, match="somebody else"):
        check_leaf(CA, LEAF, public_key=PUBLIC, uri=URI + "2")
    with pytest.raises(RecordError):
        check_leaf(CA, CA, public_key=ca_public_key(CA), uri=URI)


def test_a_leaf_is_no_ca():
    second = make_leaf(KEY, LEAF, public_key=KEY.public_key(), name="node-b", uri=URI)
    with pytest.raises(RecordError):
        ca_public_key(LEAF)
    with pytest.raises(RecordError):
        check_leaf(CA, second, public_key=PUBLIC, uri=URI)


@pytest.mark.parametrize(
    "text", ["", "nonsense", LEAF[:100], "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(RecordError):
        ca_public_key(text)
    with pytest.raises(RecordError):
        check_leaf(CA, text, public_key=PUBLIC, uri=URI)


def test_private_keys_survive_their_text_and_nothing_else_does():
    pem = private_key_pem(KEY)
    assert load_private_key(pem).private_bytes_raw() == KEY.private_bytes_raw()
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for text in ("", "nonsense", pem[:60], other.decode(), CA):
        with pytest.raises(RecordError) as caught:
            load_private_key(text)
        assert caught.value.__cause__ is None  # a cause could quote the key

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh import identity
from mesh.errors import ConfigError, RecordError
from mesh.identity import Authority, cluster_id, issue, verify

MESH = Credentials(1)
NODE = MESH.identity("node-a")


def test_a_certificate_of_the_mesh_is_accepted() -> None:
    Authority(MESH.ca_public_key).check(NODE.certificate)


@pytest.mark.parametrize(
    "forged",
    [
        {"name": "node-b"},
        {"role": "operator"},
        {"enrolment": 2},
        {"public_key": bytes(32)},
        {"signature": bytes(64)},
        {"cluster": bytes(8)},
    ],
)
def test_a_certificate_changed_anywhere_is_refused(forged: dict) -> None:
    with pytest.raises(RecordError):
        Authority(MESH.ca_public_key).check(msgspec.structs.replace(NODE.certificate, **forged))


def test_a_certificate_of_another_authority_is_refused_even_for_the_same_name() -> None:
    with pytest.raises(RecordError, match="another mesh"):
        Authority(MESH.ca_public_key).check(Credentials(2).identity("node-a").certificate)


def test_an_authority_that_signs_with_our_cluster_id_but_another_key_is_refused() -> None:
    public_key = MESH.key("x").public_key().public_bytes_raw()
    forged = issue(
        MESH.key("thief"), cluster=MESH.cluster, role="node", name="node-a", enrolment=1, public_key=public_key
    )
    with pytest.raises(RecordError, match="forged"):
        Authority(MESH.ca_public_key).check(forged)


def test_a_signature_holds_for_its_domain_only() -> None:
    signature = NODE.sign(b"one", b"data")
    verify(NODE.certificate, b"one", b"data", signature)
    with pytest.raises(RecordError):
        verify(NODE.certificate, b"two", b"data", signature)


@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20), st.integers(1, 19))
def test_moving_the_border_between_domain_and_data_breaks_the_signature(domain: bytes, data: bytes, cut: int) -> None:
    joined = domain + data
    cut = min(cut, len(joined) - 1)
    if cut == len(domain):
        return
    with pytest.raises(RecordError):
        verify(NODE.certificate, joined[:cut], joined[cut:], NODE.sign(domain, data))


@pytest.mark.parametrize(("role", "name"), [("node", "no spaces"), ("node", ""), ("operator", ""), ("king", "a")])
def test_issuing_for_an_unusable_role_or_name_says_so(role: str, name: str) -> None:
    with pytest.raises(ConfigError):
        issue(MESH.ca_key, cluster=MESH.cluster, role=role, name=name, enrolment=1, public_key=bytes(32))


def test_the_mesh_id_depends_on_the_authority_key_alone() -> None:
    assert cluster_id(MESH.ca_public_key) == MESH.cluster
    assert cluster_id(Credentials(2).ca_public_key) != MESH.cluster


def test_verified_certificates_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CERTIFICATES_CACHED_MAX", 2)
    authority = Authority(MESH.ca_public_key)
    for name in ("a", "b", "c"):
        authority.check(MESH.identity(name).certificate)
    assert [certificate.name for certificate in authority._verified] == ["b", "c"]


def test_neither_keys_nor_secrets_show_in_the_text_of_an_identity() -> None:
    secret = NODE.private_key.private_bytes_raw()
    assert repr(secret)[2:-1] not in repr(NODE)
    assert "private_key" not in repr(NODE)

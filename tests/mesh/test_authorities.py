"""Goal: CAs follow one another by the word of those before, and no retired one ever speaks again.

Method: random courses of steps, and forgeries by whoever holds a retired CA's key.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh.authorities import (
    CAS_MAX,
    Authorities,
    CaState,
    Reissued,
    add,
    ca_name,
    first_authorities,
    only_added,
    open_authorities,
    open_enrolled,
    parse_ca_name,
    promote,
    retire,
    sign_authorities,
)
from mesh.ca_statements import STATEMENT_BYTES_MAX, sign_statement
from mesh.errors import ConfigError, ConflictError, LimitError, NotFoundError, RecordError
from mesh.identity import Authority, issue

MESH = Credentials(1)
OTHER = Credentials(2)
FIRST = first_authorities(MESH.ca_public_key)


def key(number: int) -> Ed25519PrivateKey:
    return MESH.ca_key if number == 0 else MESH.key(f"ca {number}")


def public(number: int) -> bytes:
    return key(number).public_key().public_bytes_raw()


def name(number: int) -> str:
    return ca_name(public(number))


def key_of(public_key: bytes) -> Ed25519PrivateKey:
    return next(key(number) for number in range(CAS_MAX + 2) if public(number) == public_key)


def said(authorities: Authorities) -> bytes:
    return sign_authorities(key_of(authorities.signing.public_key), MESH.cluster, authorities)


@dataclass
class Course:
    """A mesh directory that takes random steps, and every list that it made."""

    now: Authorities = FIRST
    lists: list[Authorities] = field(default_factory=lambda: [FIRST])

    def step(self, choice: int, which: int) -> None:
        chosen = self.now.cas[which % len(self.now.cas)].name
        try:
            if choice == 0:
                self.now = add(self.now, key_of(self.now.signing.public_key), public(len(self.now.cas)))
            else:
                self.now = (promote if choice == 1 else retire)(self.now, chosen, ())
        except ConflictError:
            return
        self.lists.append(self.now)


ROTATION = [(0, 0), (1, 1), (2, 0)]
courses = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=14)


def made(steps: list[tuple[int, int]]) -> Course:
    course = Course()
    for choice, which in steps:
        course.step(choice, which)
    return course


@settings(max_examples=60)
@given(courses, st.data())
def test_whoever_knows_any_list_follows_any_later_one(steps, data) -> None:
    course = made(steps)
    known = data.draw(st.sampled_from(course.lists))
    later = data.draw(st.sampled_from([each for each in course.lists if each.number >= known.number]))
    opened, statement = open_authorities(known, MESH.cluster, said(replace(later, number=later.number + 1)))
    assert (opened.cas, opened.number) == (later.cas, statement.number)
    assert opened.signing.public_key == opened.trusted[0]


@settings(max_examples=60)
@given(courses, st.integers(0, 5), st.sampled_from(["statement", "endorsement", "chain"]))
def test_a_retired_ca_speaks_to_nobody_who_knows_of_it_whatever_it_signs(steps, which, way) -> None:
    now = made([*ROTATION, *steps]).now
    gone = [ca for ca in now.cas if ca.state is CaState.RETIRED]
    thief, mine = gone[which % len(gone)], key(CAS_MAX + 1)
    stolen = key_of(thief.public_key)
    if way == "statement":  # it names itself as the one that signs
        states = {thief.public_key: CaState.SIGNING, now.signing.public_key: CaState.INSTALLED}
        cas = tuple(msgspec.structs.replace(ca, state=states.get(ca.public_key, ca.state)) for ca in now.cas)
        forged = sign_authorities(stolen, MESH.cluster, Authorities(99, cas))
    else:  # it endorses another that does
        base = Authorities(98, tuple(msgspec.structs.replace(ca, state=CaState.RETIRED) for ca in now.cas))
        cas = tuple(
            msgspec.structs.replace(ca, state=CaState.SIGNING if ca == thief else CaState.RETIRED) for ca in now.cas
        )
        base = add(Authorities(98, cas), stolen, mine.public_key().public_bytes_raw())
        signing = promote(base, base.cas[-1].name, ())
        if way == "chain":  # and says that it is retired itself
            signing = retire(signing, thief.name, ())
        forged = sign_authorities(mine, MESH.cluster, signing)
    with pytest.raises(RecordError):
        open_authorities(now, MESH.cluster, forged)
    authority = Authority(MESH.ca_public_key)
    authority.trust(now.trusted, ())
    with pytest.raises(RecordError):
        authority.check(certified(stolen))


def test_no_list_takes_a_retired_ca_back_not_even_by_the_one_that_signs() -> None:
    now = retire(promote(add(FIRST, key(0), public(1)), name(1), ()), name(0), ())
    back = msgspec.structs.replace(now.cas[0], state=CaState.INSTALLED)
    with pytest.raises(RecordError, match=f"takes back CA {name(0)}"):
        open_authorities(now, MESH.cluster, said(replace(now, number=now.number + 1, cas=(back, *now.cas[1:]))))


def certified(ca_key: Ed25519PrivateKey, enrolment: int = 1, owner: Credentials = MESH):
    held_by = owner.key(f"node-a {enrolment}").public_key().public_bytes_raw()
    return issue(ca_key, cluster=MESH.cluster, role="node", name="node-a", enrolment=enrolment, public_key=held_by)


def test_a_rotation_is_three_lists() -> None:
    added = add(FIRST, key(0), public(1))
    promoted = promote(added, name(1), [Reissued(certified(key(1)))])
    retired = retire(promoted, name(0), promoted.reissued)
    assert [each.number for each in (added, promoted, retired)] == [1, 2, 3]
    assert added.trusted == (public(0), public(1))
    assert promoted.trusted == (public(1), public(0))
    assert (retired.trusted, retired.retired) == ((public(1),), {public(0)})
    assert [ca.public_key for ca in retired.line_of_signing()] == [public(1), public(0)]
    assert (only_added(FIRST, added), only_added(added, promoted), only_added(promoted, retired)) == (
        True,
        False,
        False,
    )
    found = retired.reissued_for(certified(key(0)))
    assert found is not None
    assert found.certificate == certified(key(1))
    assert retired.reissued_for(certified(key(0), enrolment=2)) is None


def test_a_certificate_of_a_retired_ca_holds_only_where_the_next_has_issued_the_same() -> None:
    authority = Authority(MESH.ca_public_key)
    old, new, foreign = certified(key(0)), certified(key(1)), certified(key(0), owner=OTHER)
    strangers: list[int] = []
    authority.on_stranger = lambda: strangers.append(1)
    assert authority.signer_of(old) == public(0)
    with pytest.raises(RecordError, match="of a CA that is not trusted here"):
        authority.check(new)
    assert strangers == [1]

    authority.trust([public(1)], [new])
    assert authority.signer_of(new) == public(1)
    assert authority.signer_of(old) == b""  # believed for its content, and no sign that its holder has the new one
    for stolen in (foreign, certified(key(0), enrolment=2)):  # another key, another enrolment: nobody vouches for it
        with pytest.raises(RecordError):
            authority.check(stolen)
    authority.refusal = lambda *_: "revoked"
    with pytest.raises(RecordError, match="revoked"):
        authority.check(old)


def test_what_was_verified_under_a_ca_is_forgotten_with_it() -> None:
    authority = Authority(MESH.ca_public_key)
    authority.check(certified(key(0)))
    authority.trust([public(1)], ())
    with pytest.raises(RecordError):
        authority.check(certified(key(0)))


@given(st.data())
def test_a_statement_changed_in_any_byte_or_cut_is_refused(data: st.DataObject) -> None:
    raw = bytearray(said(promote(add(FIRST, key(0), public(1)), name(1), [Reissued(certified(key(1)), b"x" * 50)])))
    where = data.draw(st.integers(0, len(raw) - 1))
    raw[where] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(raw), bytes(raw[:where])):
        with pytest.raises(RecordError):
            open_authorities(FIRST, MESH.cluster, bad)
        with pytest.raises(RecordError):
            open_enrolled(MESH.cluster, bad)


@given(st.binary(max_size=300))
def test_random_content_is_refused(content: bytes) -> None:
    raw = sign_statement(MESH.ca_key, cluster=MESH.cluster, kind="authorities", number=1, content=content)
    with pytest.raises(RecordError):
        open_authorities(FIRST, MESH.cluster, raw)


def test_another_mesh_another_kind_and_a_list_that_is_none_are_refused() -> None:
    added = add(FIRST, key(0), public(1))
    elsewhere = first_authorities(OTHER.ca_public_key)
    ring = sign_statement(MESH.ca_key, cluster=MESH.cluster, kind="ring", number=1, content=b"x")
    foreign = sign_authorities(OTHER.ca_key, OTHER.cluster, replace(elsewhere, number=1))
    disguised = sign_authorities(OTHER.ca_key, MESH.cluster, replace(elsewhere, number=1))
    twice = sign_authorities(MESH.ca_key, MESH.cluster, replace(added, cas=(*added.cas, added.cas[-1])))
    both = tuple(msgspec.structs.replace(ca, state=CaState.SIGNING) for ca in added.cas)
    two = sign_authorities(MESH.ca_key, MESH.cluster, replace(added, cas=both))
    for raw in (ring, foreign, disguised, twice, two):
        with pytest.raises(RecordError):
            open_authorities(FIRST, MESH.cluster, raw)
    with pytest.raises(RecordError, match="does not name this one"):
        open_enrolled(MESH.cluster, disguised)


def test_an_endorsement_cannot_be_moved_to_another_mesh() -> None:
    # The same CA key serves two meshes by mistake; what it endorsed in one is nothing in the other.
    there = add(first_authorities(OTHER.ca_public_key), OTHER.ca_key, public(0))
    moved = add(promote(there, name(0), ()), key(0), public(1)).cas[-1]
    cas = (*FIRST.cas, msgspec.structs.replace(moved, state=CaState.SIGNING))
    cas = (msgspec.structs.replace(cas[0], state=CaState.INSTALLED), cas[1])
    with pytest.raises(RecordError, match="no CA that is trusted here endorsed"):
        open_authorities(FIRST, MESH.cluster, sign_authorities(key(1), MESH.cluster, Authorities(1, cas)))


def test_steps_that_may_not_be_say_why() -> None:
    added = add(FIRST, key(0), public(1))
    promoted = promote(added, name(1), ())
    retired = retire(promoted, name(0), ())
    with pytest.raises(ConflictError, match="promote another one first"):
        retire(promoted, name(1), ())
    with pytest.raises(ConflictError, match="is the signing CA already"):
        promote(promoted, name(1), ())
    with pytest.raises(ConflictError, match="for good: add a new one"):
        promote(retired, name(0), ())
    with pytest.raises(ConflictError, match="retired already"):
        retire(retired, name(0), ())
    with pytest.raises(NotFoundError, match=f"the mesh has {name(0)}"):
        promote(FIRST, name(1), ())
    with pytest.raises(ConfigError, match="mesh ca list"):
        parse_ca_name("nonsense")
    assert parse_ca_name(name(1)) == name(1)


def test_there_is_room_for_a_known_number_of_cas_and_of_certificates() -> None:
    full = FIRST
    for number in range(1, CAS_MAX):
        full = promote(add(full, key(number - 1), public(number)), name(number), ())
    assert open_authorities(FIRST, MESH.cluster, said(full))[0].signing.public_key == public(CAS_MAX - 1)
    with pytest.raises(LimitError, match="make a new mesh"):
        add(full, key(CAS_MAX - 1), public(CAS_MAX))
    each = Reissued(certified(key(0)), bytes(1_000))
    fits = replace(FIRST, reissued=(each,) * (STATEMENT_BYTES_MAX // 1_200))
    assert open_authorities(FIRST, MESH.cluster, said(replace(fits, number=1)))
    with pytest.raises(LimitError, match="do not fit a statement"):
        said(replace(FIRST, number=1, reissued=(each,) * (STATEMENT_BYTES_MAX // 1_000)))

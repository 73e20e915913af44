import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh.ids import Address
from mesh.membership import Membership
from mesh.own_record import OwnRecord
from mesh.profiles import LOCAL
from mesh.protocol import NEWEST, OLDEST, RELEASE_CHARS_MAX, SILENT, Speaks, common, refusal, this_release
from mesh.records import MemberRecord

ADDRESS = Address("127.0.0.1", 1)
RANGES = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: Speaks(pair[0], pair[0] + pair[1], 3, ""))


def record(node_id: str, speaks: Speaks | None = None) -> MemberRecord:
    identity = Credentials(1).identity(node_id)
    own = OwnRecord(identity, boot=1, process=1, address=ADDRESS, rpc_address=ADDRESS, speaks=speaks)
    return own.current


@given(RANGES, RANGES)
def test_two_members_use_the_highest_version_that_both_speak_whoever_asks(a: Speaks, b: Speaks) -> None:
    both = set(range(a.oldest, a.newest + 1)) & set(range(b.oldest, b.newest + 1))
    assert common(a, b) == common(b, a) == max(both, default=None)


def test_this_release_still_speaks_with_one_that_does_not_say_what_it_speaks() -> None:
    assert common(this_release(), SILENT) == 1
    assert Speaks(1, 1, 3, "") == SILENT
    assert (OLDEST, NEWEST) == (1, 2)


@pytest.mark.parametrize(
    ("theirs", "told", "to_upgrade"), [(Speaks(4, 5, 9, "3.0"), "4 to 5", "this node"), (Speaks(1, 1, 3, ""), "1", "b")]
)
def test_a_refusal_names_both_ranges_and_who_is_to_be_upgraded(theirs: Speaks, told: str, to_upgrade: str) -> None:
    text = refusal(Speaks(2, 3, 5, "2.0"), theirs, "b")
    assert f"speaks protocol {told}, and this node (release 2.0) 2 to 3: upgrade {to_upgrade} " in text
    assert "\n" not in text


def test_a_release_name_too_long_for_a_record_is_cut() -> None:
    assert this_release(3, "1." + "9" * 99).release == ("1." + "9" * 99)[:RELEASE_CHARS_MAX]


def test_all_members_understand_what_the_oldest_of_them_does() -> None:
    members = Membership(record("a"), LOCAL, now=0.0)
    assert members.protocol_of_all() == NEWEST
    members.apply_record(record("b", SILENT), 0.0)
    assert members.protocol_of_all() == 1
    members.apply_record(record("c", Speaks(5, 7, 9, "5.0")), 0.0)
    stranger, silent = members.get("c"), members.get("b")
    assert stranger is not None
    assert silent is not None
    assert (members.protocol_with(stranger), members.protocol_with(silent)) == (None, 1)
    assert members.protocol_of_all() == 1

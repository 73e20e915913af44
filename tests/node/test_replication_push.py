"""What a commit tells the mesh: a signed bundle for small news, a hint for everything else."""

from __future__ import annotations

import msgspec
import pytest

from chaos.simulation.credentials import Credentials
from mesh.bundles import open_bundle
from mesh.identity import Authority
from mesh.ids import Origin
from mesh.rows import Row
from node.replication.push import BUNDLE_BURST, BUNDLES_PER_S, VALUE_BYTES_MAX, Push
from node.storage.store import Commit


class Told:
    def __init__(self) -> None:
        self.mesh = Credentials(1)
        self.now = 100.0
        self.peers = True
        self.bundles: list[tuple[bytes, bytes]] = []
        self.hints = 0
        self.push = Push(
            self.mesh.identity("a"),
            publish=lambda payload, subject: self.bundles.append((payload, subject)),
            hint=self._hint,
            has_peers=lambda: self.peers,
            now=lambda: self.now,
        )

    def _hint(self) -> None:
        self.hints += 1

    def commit(self, *requests: tuple[Row, ...]) -> None:
        self.push.on_commit(Commit(tuple(requests), (), True))


@pytest.fixture
def told():
    return Told()


def row(seq: int = 1, body: bytes = b"x") -> Row:
    return Row(
        table="steps",
        namespace="default",
        key=f"k{seq}",
        hlc=seq << 16,
        node="a",
        origin=Origin("a", 7),
        seq=seq,
        values={"input": body},
    )


def test_each_small_request_is_one_bundle_that_completes_its_range(told):
    told.commit((row(1), row(2)), (row(3),))
    opened = [open_bundle(Authority(told.mesh.ca_public_key), payload) for payload, _ in told.bundles]
    assert [(bundle.lo, bundle.hi, bundle.rows) for bundle in opened] == [(1, 2, [row(1), row(2)]), (3, 3, [row(3)])]
    assert (told.push.bundles_total, told.push.hints_total) == (2, 0)


def test_a_large_value_or_a_large_request_is_only_hinted_at(told):
    told.commit((row(1, b"x" * VALUE_BYTES_MAX),))
    assert (len(told.bundles), told.hints) == (1, 0)
    told.commit((row(2, b"x" * (VALUE_BYTES_MAX + 1)),))
    told.commit(tuple(row(3 + n, b"x" * 200) for n in range(6)))
    assert (len(told.bundles), told.hints) == (1, 2)


def test_what_was_merged_from_others_is_hinted_at_once_a_commit(told):
    told.commit()
    assert (len(told.bundles), told.hints) == (0, 1)
    told.push.on_commit(Commit((), (), False))
    assert told.hints == 1


def test_beyond_the_burst_bundles_become_hints_until_time_passes(told):
    told.commit(*((row(n),) for n in range(1, int(BUNDLE_BURST) + 1)))
    assert (len(told.bundles), told.hints) == (BUNDLE_BURST, 0)
    told.commit((row(100),))
    assert (len(told.bundles), told.hints) == (BUNDLE_BURST, 1)
    told.now += 2 / BUNDLES_PER_S
    told.commit((row(101),), (row(102),), (row(103),))
    assert (len(told.bundles), told.hints) == (BUNDLE_BURST + 2, 2)


def test_nothing_is_signed_or_said_while_nobody_listens(told):
    told.peers = False
    told.commit((row(1),))
    assert (told.bundles, told.hints) == ([], 0)


def test_a_bundle_of_a_stolen_gossip_key_is_not_opened(told):
    told.commit((row(1),))
    fields = msgspec.msgpack.decode(told.bundles[0][0])
    fields[4] = bytes(64)
    with pytest.raises(Exception, match="signature"):
        open_bundle(Authority(told.mesh.ca_public_key), msgspec.msgpack.encode(fields))

"""A later enrolment that cannot be used changes nothing on the running node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.errors import ConfigError
from mesh.identity import Authority
from node import identity_files
from node.reenrolment import Reenrolment


async def test_a_revoked_enrolment_is_refused_before_anything_uses_it(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    identity_files.found(root, "node-a")
    file = tmp_path / "later.enrolment"
    (root / identity_files.IDENTITY_FILE).rename(file)
    enrolment = identity_files.read_enrolment(file)
    authority = Authority(enrolment.identity().ca_public_key)
    authority.refusal = lambda *_: "enrolment 1 of node-a was revoked"

    async def run(call):
        return call()

    # Nothing else of a node is there: whoever went on would fail with another error.
    node = SimpleNamespace(
        env=SimpleNamespace(writer_thread=SimpleNamespace(run=run)),
        spec=SimpleNamespace(identity=SimpleNamespace(certificate=None)),
        authority=authority,
        trust=None,
        on_authorities=[],
    )
    with pytest.raises(ConfigError, match="was revoked"):
        await Reenrolment(cast(Any, node), cast(Any, None), root, enrolment).install(file)
    assert not (root / identity_files.IDENTITY_FILE).exists()

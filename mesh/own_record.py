"""This node's own signed record, and the only place where its incarnation rises.

Promises: every change signs a new record with the next incarnation, so it beats whatever was said about the one before.
Nobody else can sign for us; an incarnation above ours that a claim names cannot exist and is never chased.
"""

from __future__ import annotations

import msgspec

from mesh.identity import Identity, content_of
from mesh.ids import Address, Life
from mesh.protocol import Speaks, this_release
from mesh.records import MemberRecord, RecordBody, sign_record


class OwnRecord:
    """Signs what this node says about itself."""

    def __init__(
        self,
        identity: Identity,
        *,
        boot: int,
        process: int,
        address: Address,
        rpc_address: Address,
        speaks: Speaks | None = None,
        ring: int = 0,
        revocations: int = 0,
        authorities: int = 0,
    ) -> None:
        self._identity = identity
        body = RecordBody(
            certificate=identity.certificate,
            boot=boot,
            incarnation=0,
            process=process,
            left=False,
            store_failed=False,
            host=address.host,
            port=address.port,
            rpc_host=rpc_address.host,
            rpc_port=rpc_address.port,
            speaks=speaks or this_release(),
            ring=ring,
            revocations=revocations,
            authorities=authorities,
        )
        self.current: MemberRecord = sign_record(identity, body)

    @property
    def life(self) -> Life:
        """This start's life."""
        return self.current.life

    @property
    def left(self) -> bool:
        """True once we have said goodbye."""
        return self.current.body.left

    def adopt(self, identity: Identity) -> MemberRecord:
        """Begin a life under a later enrolment of the same node."""
        body = self.current.body
        assert identity.node_id == body.certificate.name
        assert identity.certificate.enrolment > body.certificate.enrolment
        self._identity = identity
        self.current = sign_record(
            identity, msgspec.structs.replace(body, certificate=identity.certificate, incarnation=0)
        )
        return self.current

    def refute(self) -> MemberRecord:
        """Say the same again under the next incarnation."""
        return self._sign(self.current.body)

    def leave(self) -> MemberRecord:
        """Say goodbye."""
        return self._sign(msgspec.structs.replace(self.current.body, left=True))

    def set_store_failed(self, failed: bool) -> MemberRecord | None:
        """Say whether our database takes writes; None when that was said already."""
        if self.current.body.store_failed == failed:
            return None
        return self._sign(msgspec.structs.replace(self.current.body, store_failed=failed))

    def set_installed(
        self, *, ring: int, revocations: int, authorities: int = 0, renewed: Identity | None = None
    ) -> MemberRecord | None:
        """Say which key ring, revocations and CAs we have; None when that was said already.

        `renewed` is a certificate of another CA for this very enrolment and key: we go on under it in the same life.
        """
        body = self.current.body
        if renewed is not None:
            assert content_of(renewed.certificate) == content_of(body.certificate)
            self._identity = renewed
        told = msgspec.structs.replace(
            body,
            certificate=self._identity.certificate,
            ring=ring,
            revocations=revocations,
            authorities=authorities,
        )
        return None if told == body else self._sign(told)

    def is_current(self, life: int, incarnation: int) -> bool:
        """True for the life and incarnation that we last signed: what is said of those must be refuted."""
        return (life, incarnation) == (self.life, self.current.body.incarnation)

    def _sign(self, body: RecordBody) -> MemberRecord:
        body = msgspec.structs.replace(body, incarnation=self.current.body.incarnation + 1)
        self.current = sign_record(self._identity, body)
        return self.current

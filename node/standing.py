"""Who counts, by what this node holds of the CA's word: whose stream, and which certificate of its own.

Promise: a TLS certificate of a retired CA counts only where a trusted CA has certified the same holder and key, which
is what `Authority.check` asks of the certificates behind records and bundles.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from mesh.authorities import ca_name
from mesh.errors import RecordError
from mesh.identity import Authority, Identity
from mesh.membership import Member
from node.env import PeerIdentity
from node.trust import Trust

log = logging.getLogger(__name__)


class Standing:
    """Answers for one node; it remembers nothing itself."""

    def __init__(self, trust: Trust, authority: Authority, member: Callable[[str], Member | None]) -> None:
        self._trust = trust
        self._authority = authority
        self._member = member

    def stream_refusal(self, peer: PeerIdentity) -> str | None:
        """Why a peer may hold no stream: revoked, of a retired CA, or a later enrolment of its name is a member."""
        revoked = self._trust.revocations.refusal(peer.role, peer.name, peer.enrolment)
        revoked = revoked or self._trust.revocations.refusal_of_tls(peer.serial, peer.fingerprint)
        revoked = revoked or self._ca_refusal(peer)
        member = self._member(peer.name) if peer.role == "node" else None
        if revoked is None and member is not None and 0 < peer.enrolment < member.certificate.enrolment:
            return f"enrolment {peer.enrolment} of {peer.name} was followed by {member.certificate.enrolment}: use that"
        return revoked

    def complaint(self, identity: Identity) -> str | None:
        """Why nobody would believe our own certificate; None when it holds."""
        try:
            self._authority.check(identity.certificate)
        except RecordError as error:
            return str(error)
        return None

    def renewed(self, identity: Identity) -> Identity:
        """The same identity by the certificate that the signing CA has issued for it, if there is one."""
        reissued = self._trust.authorities.reissued_for(identity.certificate)
        if reissued is None or reissued.certificate == identity.certificate:
            return identity
        renewed = dataclasses.replace(identity, certificate=reissued.certificate)
        complaint = self.complaint(renewed)
        if complaint is not None:
            log.error("the CA's new certificate for this node is not used: %s", complaint)
            return identity
        log.info("the certificate by CA %s is in use", self._trust.authorities.signing.name)
        return renewed

    def _ca_refusal(self, peer: PeerIdentity) -> str | None:
        """Why the CA of a peer's TLS certificate does not do.

        Of who dials us OpenSSL has found a chain to one of our CAs, the retired ones among them. So while there are
        such, a certificate of a CA that is not known here may be a thief's as well as of a later one.
        """
        authorities, ca = self._trust.authorities, peer.ca_public_key
        if ca is None or ca in authorities.trusted or (not ca and not authorities.retired):
            return None
        if self._authority.vouches_for((peer.role, peer.name, peer.enrolment, peer.public_key)):
            return None
        if not ca:
            self._authority.on_stranger()
            return f"the certificate of {peer.name} is of a CA that is not known here"
        return f"the certificate of {peer.name} is of CA {ca_name(ca)}, which was retired: enroll {peer.name} anew"

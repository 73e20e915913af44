"""Commands about what the CA said: the key ring and its next one, revocations, the CAs, and this node's TLS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from mesh.authorities import ca_name
from mesh.errors import ConfigError, ConflictError, NotFoundError
from mesh.key_rotation import key_name
from mesh.revocations import open_revocations
from node import x509_certificates
from node.admin.arguments import Arguments
from node.config import NodeConfig
from node.node import Node
from node.reenrolment import Reenrolment
from node.trust import TRUST_FILE, Statements, lagging


class TrustCommands:
    """The commands, on one node. None of them needs more authority than its caller has: what changes something takes
    a statement that the CA signed."""

    def __init__(self, node: Node, config: NodeConfig, reenrolment: Reenrolment | None) -> None:
        self._node = node
        self._reenrolment = reenrolment
        self._root = Path(config.root)

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "mesh-keys": self._keys,
            "mesh-keys-install": self._install_ring,
            "mesh-revocations": self._revocations,
            "mesh-revocations-install": self._install_revocations,
            "mesh-ca": self._cas,
            "mesh-ca-install": self._install_authorities,
            "mesh-install": self._install_enrolment,
            "tls-status": self._tls_status,
        }

    # --- keys ---

    async def _keys(self, args: Arguments) -> dict[str, Any]:
        """The ring of this node, without its secrets, and who has it. `statement` is for the mesh's own directory."""
        ring, members = self._node.trust.ring, self._node.gossip.members
        return {
            "ring": ring.number,
            "keys": [
                {
                    "keyId": key_name(key.key_id),
                    "state": key.state.value,
                    "retiringSinceMs": key.retiring_since_ms or None,
                }
                for key in ring
            ],
            "members": [
                {"nodeId": member.node_id, "status": member.status.value, "ring": member.ring}
                for member in members.all()
            ],
            "lagging": lagging(members.active_others(), ring.number),
            **({"statement": self._node.trust.ring_statement} if args.raw("withStatement") is True else {}),
        }

    async def _install_ring(self, args: Arguments) -> dict[str, Any]:
        """Take in the operator's next ring, and spread it."""
        statement = args.payload("statement")
        others = self._node.gossip.members.active_others()
        self._node.trust.check_next_ring(statement, others, force=args.raw("force") is True)
        counted = self._counted()
        await self._node.trust.accept(statement, b"")
        return {**await self._keys(args), "countedMembers": counted}

    def _counted(self) -> list[str]:
        """Those who have to be ready for what is accepted now. Who returns while it is stored does not count."""
        return [member.node_id for member in self._node.gossip.members.all() if member.active]

    # --- revocations ---

    async def _revocations(self, args: Arguments) -> dict[str, Any]:
        """Who was revoked, as far as this node knows."""
        listed, members = self._node.trust.revocations, self._node.gossip.members
        return {
            "number": listed.number,
            "enrolments": [
                {"role": each.role, "name": each.name, "upToEnrolment": each.enrolment} for each in listed.enrolments
            ],
            "serials": list(listed.serials),
            "fingerprints": list(listed.fingerprints),
            "lagging": [m.node_id for m in members.active_others() if m.revocations < listed.number],
            **({"statement": self._node.trust.revocations_statement} if args.raw("withStatement") is True else {}),
        }

    async def _install_revocations(self, args: Arguments) -> dict[str, Any]:
        """Enforce the CA's next list, and spread it."""
        node, statement = self._node, args.payload("statement")
        listed, said = open_revocations(node.authority, statement)
        if said.order <= node.trust.orders.revocations:
            ours = node.trust.revocations.number
            raise ConflictError(f"revocations {ours} are in force here, and those given have number {listed.number}")
        await node.trust.accept(b"", statement)
        return await self._revocations(args)

    # --- CAs ---

    async def _cas(self, args: Arguments) -> dict[str, Any]:
        """The CAs of this mesh, and who follows. `withStatement` gives what the mesh's own directory needs."""
        trust, members = self._node.trust, self._node.gossip.members
        authorities, others = trust.authorities, members.active_others()
        signing = authorities.signing
        details: dict[str, Any] = {}
        if args.raw("withStatement") is True:
            details["statement"] = trust.authorities_statement
            details["certificates"] = [msgspec.msgpack.encode(member.certificate) for member in members.all()]
        return {
            "number": authorities.number,
            "cas": [
                {"ca": ca.name, "state": ca.state.value, "endorsedBy": ca_name(ca.endorser) if ca.endorser else None}
                for ca in authorities.cas
            ],
            "members": [
                {
                    "nodeId": member.node_id,
                    "status": member.status.value,
                    "number": member.authorities,
                    "certificateBy": ca_name(signer) if (signer := trust.signer_of(member)) else None,
                }
                for member in members.all()
            ],
            "lagging": [
                member.node_id
                for member in others
                if member.authorities < authorities.number or trust.signer_of(member) != signing.public_key
            ],
            **details,
        }

    async def _install_authorities(self, args: Arguments) -> dict[str, Any]:
        """Take in the CA's next list of CAs, with what has to come with it, and spread it."""
        node = self._node
        said = Statements(
            args.payload("ring"),
            args.payload("revocations"),
            args.payload("statement"),
        )
        others = [member for member in node.gossip.members.all() if member is not node.gossip.members.own]
        node.trust.check_next_authorities(said, others, force=args.raw("force") is True)
        counted = self._counted()
        await node.trust.accept(said.ring, said.revocations, said.authorities)
        return {**await self._cas(args), "countedMembers": counted}

    # --- TLS ---

    async def _install_enrolment(self, args: Arguments) -> dict[str, Any]:
        """Take a later enrolment of this node into use, from a file of this host."""
        if args.peer.role != "local" or self._reenrolment is None:
            raise ConfigError("an enrolment holds a private key and is installed on its own host: use --root")
        made = await self._reenrolment.install(Path(args.text("file", chars_max=4_096)))
        return {"nodeId": made.name, "enrolment": made.enrolment, "cluster": made.cluster.hex()}

    async def _tls_status(self, args: Arguments) -> dict[str, Any]:
        """What this node proves itself by on streams, and whom it refuses there."""
        node, trust = self._node, self._node.trust
        if not node.spec.tls_certificate:
            raise NotFoundError("the streams of this node are not TLS: it is simulated")
        serial, fingerprint = x509_certificates.names_of(node.spec.tls_certificate)
        subject, ends = x509_certificates.subject_and_end(node.spec.tls_certificate)
        me = node.gossip.members.own
        return {
            "ok": not (node.authority.refusal(*me.standing) or trust.revocations.refusal_of_tls(serial, fingerprint)),
            "requireClientAuth": True,
            "reloadIntervalMs": 0,  # nothing is polled: a change is in force when it is stored
            "loadedAtMs": node.tls_loaded_at_ms,
            "serverCertFingerprintSha256": fingerprint,
            "serverCertSerialHex": serial,
            "serverCertSubject": subject,
            "serverCertNotAfterIso": ends,
            "enrolment": me.certificate.enrolment,
            "revocationSourcePath": str(self._root / TRUST_FILE),
            "revocationLoadedAtMs": trust.revocations_loaded_at_ms,
            "revokedSerialCount": len(trust.revocations.serials),
            "revokedFingerprintCount": len(trust.revocations.fingerprints),
            "revokedEntryCount": len(trust.revocations),
            "streamsRefused": node.guard.refused_total,
        }

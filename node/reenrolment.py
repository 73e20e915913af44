"""A later enrolment of this node, or another CA's certificate, comes into use while it runs.

Promises: the file is verified whole and stored before anything uses it, and an enrolment that is not later than ours
changes nothing. To the others it is a new life of the same node, which begins with a call to each of them; streams
opened from then on prove the new certificate, and peers end those of the old one.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Protocol

from mesh.errors import ConfigError, ConflictError, RecordError
from node import identity_files
from node.identity_files import Enrolment, tls_material
from node.node import Node
from node.streams.tls import TlsContexts, make_contexts

log = logging.getLogger(__name__)


class TlsNet(Protocol):
    """A network whose streams prove an identity that can be replaced."""

    def adopt(self, contexts: TlsContexts) -> None:
        """Prove this identity on every stream that opens from now on."""
        ...


class Reenrolment:
    """Installs enrolments on one running node."""

    def __init__(self, node: Node, net: TlsNet, root: Path, enrolment: Enrolment) -> None:
        """`enrolment` is what the node began with."""
        self._node = node
        self._net = net
        self._root = root
        self._enrolment = enrolment
        node.on_authorities.append(self._follow_authorities)

    def _follow_authorities(self) -> None:
        """The CAs that are trusted have changed, and perhaps our own certificate."""
        try:
            material = tls_material(self._enrolment, self._node.trust.authorities)
            contexts = make_contexts(material)
        except (RecordError, ConfigError) as error:
            log.error("streams go on as they were, the CA's new list does not work for TLS: %s", error)
            return
        self._net.adopt(contexts)
        self._node.note_tls(material.certificate_pem)

    async def install(self, file: Path) -> Enrolment:
        """Use the enrolment in `file` from now on.

        ConfigError when it cannot be used; ConflictError when it is another node's, or not later than ours.
        """
        run = self._node.env.writer_thread.run
        before = self._node.spec.identity.certificate
        enrolment = await run(partial(identity_files.read_enrolment, file))
        trust, statements = self._node.trust, (enrolment.ring_statement, b"", enrolment.authorities_statement)
        try:
            self._node.authority.check_standing(enrolment.certificate)
            trust.check(*statements)
            if enrolment.authorities.number <= trust.authorities.number:
                self._node.authority.check(enrolment.certificate)
        except RecordError as error:
            raise ConfigError(f"{file} cannot be used: {error}") from None
        make_contexts(enrolment.tls_material)  # raises when it cannot be used
        if enrolment.certificate == before:
            raise ConflictError(f"{file} is what this node uses already: enroll {before.name} anew")
        await run(partial(identity_files.install, self._root, file))
        await trust.accept(*statements)
        self._enrolment = enrolment
        self._follow_authorities()
        self._node.adopt(enrolment.identity(), self._node.spec.tls_certificate)
        log.info("enrolment %d is in use, after %d", enrolment.enrolment, before.enrolment)
        return enrolment

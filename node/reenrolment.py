"""A later enrolment of this node comes into use while it runs: certificate, key and enrolment number are new.

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
from node.identity_files import Enrolment
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

    def __init__(self, node: Node, net: TlsNet, root: Path) -> None:
        self._node = node
        self._net = net
        self._root = root

    async def install(self, file: Path) -> Enrolment:
        """Use the enrolment in `file` from now on.

        ConfigError when it cannot be used; ConflictError when it is another node's, or not later than ours.
        """
        run = self._node.env.writer_thread.run
        before = self._node.spec.identity.certificate
        enrolment = await run(partial(identity_files.read_enrolment, file))
        try:
            self._node.authority.check_standing(enrolment.certificate)
        except RecordError as error:
            raise ConfigError(f"{file} cannot be used: {error}") from None
        contexts = make_contexts(enrolment.tls_material)
        if enrolment.certificate == before:
            raise ConflictError(f"{file} is what this node uses already: enroll {before.name} anew")
        await run(partial(identity_files.install, self._root, file))
        await self._node.trust.accept(enrolment.ring_statement, b"")
        self._net.adopt(contexts)
        self._node.adopt(enrolment.identity(), enrolment.tls_certificate_pem)
        log.info("enrolment %d is in use, after %d", enrolment.enrolment, before.enrolment)
        return enrolment

"""Commands that rotate the mesh's CA: a new one is added, signs, and the former one is retired.

As with keys and revocations, what changes something is signed in the mesh directory and handed to any one node, and
what a node accepted is the truth. Only the private key of a new CA is stored before: it must not be lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import ConfigError, ConflictError, RecordError
from tools.session import EXIT_OK, Session, command
from tools.trust_commands import ForceOption, MeshOption, confirm_leaving, mesh_dir_of

if TYPE_CHECKING:  # they bring in the cryptography library, which a command line that only asks does without
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from mesh.authorities import Authorities, Reissued
    from mesh.sealing import KeyRing
    from node.identity_files import MeshDirectory

CaArgument = Annotated[str, typer.Argument(metavar="CA", help="Eight characters, as `mesh ca list` shows them.")]

_CONSEQUENCE = (
    "may believe nobody after this, and nobody it, until it has fetched its new certificate over a stream, or was "
    "enrolled anew if there is none for it"
)

ca_app = typer.Typer(
    no_args_is_help=False, rich_markup_mode=None, help="Rotate the mesh's CA: add, promote, retire the former one."
)


def register(mesh_app: typer.Typer) -> None:
    """Add the commands of this module to `relaymesh mesh`."""
    mesh_app.add_typer(ca_app, name="ca", rich_help_panel="Commands")
    command(ca_app, "list", panel="Commands")(_list)
    command(ca_app, "add", panel="Commands")(_add)
    command(ca_app, "promote", panel="Commands")(_promote)
    command(ca_app, "retire", panel="Commands")(_retire)


def _list(session: Session) -> int:
    """Show the mesh's CAs, and which nodes lag behind.

    \b
    Example: relaymesh --root data mesh ca list
    """
    _show(session, session.ask("mesh-ca"))
    return EXIT_OK


def _add(session: Session, mesh: MeshOption = None) -> int:
    """Make a new CA that all nodes trust.

    It signs nothing before it is promoted. Its private key stays in the mesh directory.

    \b
    Example: relaymesh --root data mesh ca add --mesh mesh
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from mesh import authorities as rules
    from node import ca_files, x509_certificates
    from node.identity_files import opened_mesh

    mesh_dir = mesh_dir_of(session, mesh)
    with opened_mesh(mesh_dir) as directory:
        current = _ask(session, directory).current
        endorser_pem = x509_certificates.pem_of(current.signing.root)
        endorser_key = ca_files.ca_key(mesh_dir, current, current.signing)
        key = Ed25519PrivateKey.generate()
        root = x509_certificates.make_ca(key, name=f"RelayMesh {directory.authority.cluster.hex()}")
        cross = x509_certificates.make_cross(endorser_key, endorser_pem, key.public_key())
        following = rules.add(
            current,
            endorser_key,
            key.public_key().public_bytes_raw(),
            root=x509_certificates.der_of(root),
            cross=x509_certificates.der_of(cross),
        )
        statement = rules.sign_authorities(endorser_key, directory.authority.cluster, following)
        key_file = ca_files.store_ca_key(mesh_dir, following.cas[-1].name, key)
        try:
            answer = session.ask("mesh-ca-install", statement=statement)
        except (ConflictError, ConfigError, RecordError):
            key_file.unlink()  # refused: this CA will never be one
            raise
        ca_files.store_authorities(mesh_dir, statement)
    _show(session, answer)
    return EXIT_OK


def _promote(session: Session, ca: CaArgument, mesh: MeshOption = None, force: ForceOption = False) -> int:
    """Have a CA sign from now on.

    It issues the certificates of all enrolled hosts and people anew, for the keys that they have; the nodes spread
    them, and each takes its own into use. Refused while a node that is ALIVE or SUSPECT does not trust the CA yet.

    \b
    Example: relaymesh --root data mesh ca promote 1f00c0de --mesh mesh
    """
    from mesh import authorities as rules

    name = rules.parse_ca_name(ca)
    return _change(session, mesh, lambda current, reissued: rules.promote(current, name, reissued), force=force)


def _retire(session: Session, ca: CaArgument, mesh: MeshOption = None, force: ForceOption = False) -> int:
    """End the trust in a CA, for good.

    What it signs from now on is refused everywhere. Refused while a node that is ALIVE or SUSPECT holds no
    certificate of another CA. A node that was away meanwhile takes its new certificate when it returns.

    \b
    Example: relaymesh --root data mesh ca retire 1f00c0de --mesh mesh
    """
    from mesh import authorities as rules

    name = rules.parse_ca_name(ca)
    return _change(session, mesh, lambda current, reissued: rules.retire(current, name, reissued), force=force)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the mesh follows now, by the word of one node."""

    current: Authorities
    certificates: list[bytes]
    lagging: list[str]
    members: list[str]
    """Who may come back: all that have not left for good."""


def _ask(session: Session, directory: MeshDirectory) -> _Asked:
    from mesh.authorities import open_authorities

    shown = session.ask("mesh-ca", withStatement=True)
    current = directory.authorities
    if shown["number"] < current.number:
        raise ConflictError(
            f"the asked node follows CA list {shown['number']}, and the mesh has list {current.number} by now: ask "
            "another node"
        )
    if shown["statement"]:
        current, _ = open_authorities(current, directory.authority.cluster, shown["statement"])
    members = [each["nodeId"] for each in shown["members"] if each["status"] != "LEFT"]
    return _Asked(current, shown["certificates"], shown["lagging"], members)


def _change(
    session: Session,
    mesh: Path | None,
    change: Callable[[Authorities, Sequence[Reissued]], Authorities],
    *,
    force: bool,
) -> int:
    """One step after which other certificates hold: everybody's are issued anew by whoever signs then."""
    from mesh.authorities import sign_authorities
    from node import ca_files, x509_certificates
    from node.identity_files import opened_mesh, store_issued
    from node.reissue import reissue

    mesh_dir = mesh_dir_of(session, mesh)
    with opened_mesh(mesh_dir) as directory:
        asked = _ask(session, directory)
        signing = change(asked.current, ()).signing  # raises when this step may not be
        key = ca_files.ca_key(mesh_dir, asked.current, signing)
        ca_pem = x509_certificates.pem_of(signing.root)
        made = reissue(directory, asked.current, asked.certificates, ca_key=key, ca_pem=ca_pem)
        statement = sign_authorities(key, directory.authority.cluster, change(asked.current, made.reissued))
        again = _said_again(session, asked.current, directory.authority.cluster, key)
        if force:
            covered = {each.certificate.name for each in made.reissued}
            left_out = (name for name in asked.members if name not in covered)
            confirm_leaving(sorted({*asked.lagging, *left_out}), _CONSEQUENCE)
        answer = session.ask("mesh-ca-install", statement=statement, force=force or None, **again.statements())
        # Last what says which CAs are trusted: what is stored before holds by the former list and by this one.
        again.store(mesh_dir)
        store_issued(mesh_dir, made.issued)
        ca_files.store_authorities(mesh_dir, statement)
    _show(session, answer)
    if made.uncovered:
        print(
            f"not issued anew, since they were enrolled by a release that kept no keys: {', '.join(made.uncovered)}. "
            "Enroll them anew before the former CA is retired",
            file=sys.stderr,
        )
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class _SaidAgain:
    """The ring and the revocations of the mesh in the words of the CA that signs from now on."""

    ring: KeyRing | None
    ring_statement: bytes
    """Empty, as the next, where nothing was ever said."""
    revocations: bytes
    new: tuple[str, ...]
    """Which of them the mesh has not heard yet."""

    def statements(self) -> dict[str, bytes]:
        """What is new, for the node."""
        said = {"ring": self.ring_statement, "revocations": self.revocations}
        return {name: said[name] for name in self.new}

    def store(self, mesh_dir: Path) -> None:
        """For later enrolments. Inside of `opened_mesh` only."""
        from node.identity_files import store_revocations, store_ring

        if self.ring is not None:
            store_ring(mesh_dir, self.ring, self.ring_statement)
        if self.revocations:
            store_revocations(mesh_dir, self.revocations)


def _said_again(session: Session, current: Authorities, cluster: bytes, key: Ed25519PrivateKey) -> _SaidAgain:
    from mesh.key_rotation import open_ring, sign_ring
    from mesh.revocations import open_revocations, sign_revocations
    from mesh.sealing import KeyRing
    from node.identity_files import authority_of

    authority, by_key = authority_of(current), authority_of(current)
    by_key.trust([key.public_key().public_bytes_raw()], ())
    new, ring = [], None
    ring_statement = session.ask("mesh-keys", withStatement=True)["statement"]
    if ring_statement:
        ring, _ = open_ring(authority, ring_statement)
        if not _opens(lambda: open_ring(by_key, ring_statement)):
            ring = KeyRing([*ring], number=ring.number + 1)
            ring_statement = sign_ring(key, cluster, ring)
            new.append("ring")
    revocations = session.ask("mesh-revocations", withStatement=True)["statement"]
    if revocations and not _opens(lambda: open_revocations(by_key, revocations)):
        listed, _ = open_revocations(authority, revocations)
        revocations = sign_revocations(key, cluster, replace(listed, number=listed.number + 1))
        new.append("revocations")
    return _SaidAgain(ring, ring_statement, revocations, tuple(new))


def _opens(opening: Callable[[], object]) -> bool:
    try:
        opening()
    except RecordError:
        return False
    return True


def _show(session: Session, answer: dict[str, Any]) -> None:
    if session.json:
        session.show(answer)
        return
    session.show(answer["cas"], columns=("ca", "state", "endorsedBy"))
    lagging = ", ".join(answer["lagging"])
    then = f"not followed yet, or without a new certificate: {lagging}" if lagging else "followed by all others"
    print(f"CA list {answer['number']}, {then}")

"""Commands that end trust or renew it: gossip keys, revocations, and what a node proves itself by.

What changes something is signed here, with the CA key of the mesh directory, and handed to any one node, which checks
it and spreads it. The directory follows the mesh: what a node accepted is the truth, and is stored after it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import ConfigError, ConflictError, NotFoundError
from tools.session import EXIT_OK, Session, command

if TYPE_CHECKING:  # they bring in the cryptography library, which a command line that only asks does without
    from mesh.sealing import KeyRing
    from node.trust_files import CertificateNames

MeshOption = Annotated[
    Path | None,
    typer.Option("--mesh", metavar="DIR", help="Directory made by `relaymesh mesh create`. [default: ROOT/mesh]"),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Leave nodes behind that are not ready for this; asks for their names.")
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Eight characters, as `mesh keys list` shows them.")]

RING_CONSEQUENCE = (
    "may open nobody's packets after this, until it has fetched the ring over a stream by its certificate"
)

keys_app = typer.Typer(
    no_args_is_help=False,
    rich_markup_mode=None,
    help="Rotate the gossip keys: add, promote, retire, and retire again.",
)


def register(app: typer.Typer, mesh_app: typer.Typer) -> None:
    """Add the commands of this module: some to `relaymesh mesh`, the others beside it."""
    mesh_app.add_typer(keys_app, name="keys", rich_help_panel="Commands")
    command(keys_app, "list", panel="Commands")(_list)
    command(keys_app, "add", panel="Commands")(_add)
    command(keys_app, "promote", panel="Commands")(_promote)
    command(keys_app, "retire", panel="Commands")(_retire)
    command(mesh_app, "revoke", panel="Commands")(_revoke)
    command(mesh_app, "revocations", panel="Commands")(_revocations)
    command(mesh_app, "install", panel="Commands")(_install)
    command(app, "tls-status", panel="Mesh")(_tls_status)
    command(app, "node-rpc-revocation-template", panel="Mesh", hidden=True)(_template)


# --- keys ---


def _list(session: Session) -> int:
    """Show the gossip keys, and which nodes lag behind.

    \b
    Example: relaymesh --root data mesh keys list
    """
    _show_keys(session, session.ask("mesh-keys"))
    return EXIT_OK


def _add(session: Session, mesh: MeshOption = None) -> int:
    """Make a new key, and install it on all nodes.

    Nobody seals with it before it is promoted.

    \b
    Example: relaymesh --root data mesh keys add --mesh mesh
    """
    import secrets

    from mesh import key_rotation
    from mesh.sealing import SECRET_BYTES

    return _change_ring(session, mesh, lambda ring: key_rotation.add(ring, secrets.token_bytes(SECRET_BYTES)))


def _promote(session: Session, key: KeyArgument, mesh: MeshOption = None, force: ForceOption = False) -> int:
    """Have all nodes seal with a key.

    Refused while a node that is ALIVE or SUSPECT has not the present ring.

    \b
    Example: relaymesh --root data mesh keys promote 1f00c0de --mesh mesh
    """
    from mesh import key_rotation

    key_id = key_rotation.parse_key_name(key)
    return _change_ring(session, mesh, lambda ring: key_rotation.promote(ring, key_id), force=force)


def _retire(session: Session, key: KeyArgument, mesh: MeshOption = None, force: ForceOption = False) -> int:
    """Let a key end: once to begin its 24 h of grace, once again to remove it.

    Until it is removed it is accepted. Refused while a node that is ALIVE or SUSPECT has
    not the present ring. A node that was away meanwhile fetches the ring by its certificate when it returns.

    \b
    Example: relaymesh --root data mesh keys retire 1f00c0de --mesh mesh
    """
    from mesh import key_rotation

    key_id, now_ms = key_rotation.parse_key_name(key), int(time.time() * 1000)
    return _change_ring(session, mesh, lambda ring: key_rotation.retire(ring, key_id, now_ms), force=force)


def _change_ring(
    session: Session, mesh: Path | None, change: Callable[[KeyRing], KeyRing], *, force: bool = False
) -> int:
    from mesh.key_rotation import open_ring, sign_ring
    from node.identity_files import opened_mesh, store_ring

    mesh_dir = mesh_dir_of(session, mesh)
    with opened_mesh(mesh_dir) as directory:
        shown = session.ask("mesh-keys", withStatement=True)
        ring = directory.ring
        if shown["ring"] < ring.number:
            raise ConflictError(
                f"the asked node has ring {shown['ring']}, and the mesh has ring {ring.number} by now: ask another node"
            )
        if shown["statement"]:
            ring, _ = open_ring(directory.authority, shown["statement"])
        if force:
            confirm_leaving(shown["lagging"])
        following = change(ring)
        statement = sign_ring(directory.ca_key, directory.authority.cluster, following)
        answer = session.ask("mesh-keys-install", statement=statement, force=force or None)
        store_ring(mesh_dir, following, statement)
    _show_keys(session, answer)
    return EXIT_OK


def confirm_leaving(lagging: list[str], consequence: str = RING_CONSEQUENCE) -> None:
    """Go on only after the names of those who are left behind were typed; ConfigError otherwise."""
    if not lagging:
        return
    names = ",".join(lagging)
    typed = typer.prompt(
        f"{names} {consequence}; others take over its work meanwhile. Type its name to go on",
        err=True,
    )
    if typed.strip() != names:
        raise ConfigError(f"not confirmed, and nothing was changed: {names} was to be typed")


def _show_keys(session: Session, answer: dict[str, Any]) -> None:
    if session.json:
        session.show(answer)
        return
    session.show(answer["keys"], columns=("keyId", "state", "retiringSinceMs"))
    lagging = ", ".join(answer["lagging"])
    print(f"ring {answer['ring']}, " + (f"not yet on: {lagging}" if lagging else "installed on all others"))


# --- revocations ---


def _revoke(
    session: Session,
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Name of an enrolled host.")] = None,
    operator: Annotated[str | None, typer.Option("--operator", metavar="NAME", help="Name of a person.")] = None,
    up_to: Annotated[
        int | None,
        typer.Option("--up-to", min=1, metavar="N", help="Its enrolments 1 to N. [default: to the latest]"),
    ] = None,
    serial: Annotated[str | None, typer.Option("--serial", metavar="HEX,HEX", help="Certificates by number.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", metavar="HEX,HEX", help="Certificates by SHA-256 fingerprint.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="F", help="File of certificates; node-rpc-revocation-template makes one."),
    ] = None,
    mesh: MeshOption = None,
) -> int:
    """End the trust in a host, a person or a certificate.

    Within seconds its streams are closed, its packets dropped and its rows refused, on every node that can be
    reached; others follow when they return. It cannot be undone: enroll the name anew to let it back in.

    \b
    Example: relaymesh --root data mesh revoke node-b --mesh mesh
    """
    from mesh.revocations import Revocations, RevokedEnrolment, open_revocations, sign_revocations
    from node.identity_files import opened_mesh, store_revocations
    from node.trust_files import enrolments_of

    names = _certificate_names(serial, fingerprint, file)
    if node is None and operator is None and not names:
        raise ConfigError("name what to revoke: NODE, --operator NAME, --serial, --fingerprint or --file")
    mesh_dir = mesh_dir_of(session, mesh)
    with opened_mesh(mesh_dir) as directory:
        enrolments = enrolments_of(names, directory.issued)
        for role, name in (("node", node), ("operator", operator)):
            if name is not None:
                latest = directory.numbers.get((role, name))
                if latest is None:
                    raise NotFoundError(f"{mesh_dir} never enrolled {role} {name}: look for its spelling in `members`")
                enrolments.append(RevokedEnrolment(role, name, min(up_to or latest, latest)))
        shown = session.ask("mesh-revocations", withStatement=True)
        there, here = Revocations(), directory.revocations
        if shown["statement"]:
            there, _ = open_revocations(directory.authority, shown["statement"])
        earlier, later = sorted((there, here), key=lambda listed: listed.number)
        following = later.with_more(
            [*earlier.enrolments, *enrolments],
            [*earlier.serials, *names.serials],
            [*earlier.fingerprints, *names.fingerprints],
        )
        statement = sign_revocations(directory.ca_key, directory.authority.cluster, following)
        answer = session.ask("mesh-revocations-install", statement=statement)
        store_revocations(mesh_dir, statement)
    _show_revocations(session, answer)
    print("next, since it still has the gossip key: relaymesh mesh keys add, then promote and retire", file=sys.stderr)
    return EXIT_OK


def _revocations(session: Session) -> int:
    """List who and what was revoked.

    \b
    Example: relaymesh --root data mesh revocations
    """
    _show_revocations(session, session.ask("mesh-revocations"))
    return EXIT_OK


def _show_revocations(session: Session, answer: dict[str, Any]) -> None:
    if session.json:
        session.show(answer)
        return
    lines = [
        {"what": each["role"], "revoked": f"{each['name']}, enrolments 1 to {each['upToEnrolment']}"}
        for each in answer["enrolments"]
    ]
    lines += [{"what": "serial", "revoked": serial} for serial in answer["serials"]]
    lines += [{"what": "sha256", "revoked": fingerprint} for fingerprint in answer["fingerprints"]]
    session.show(lines, columns=("what", "revoked"))
    lagging = ", ".join(answer["lagging"])
    print(f"list {answer['number']}, " + (f"not yet on: {lagging}" if lagging else "enforced by all others"))


def _template(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="F", help="New file.")],
    serial: Annotated[str | None, typer.Option("--serial", metavar="HEX,HEX", help="Serial numbers.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", metavar="HEX,HEX", help="SHA-256 fingerprints.")
    ] = None,
) -> int:
    """Write a revocation file, for `relaymesh mesh revoke --file`.

    \b
    Example: relaymesh node-rpc-revocation-template --out gone.txt --serial 1a2b,3c4d
    """
    from node import durable_files
    from node.trust_files import template

    names = _certificate_names(serial, fingerprint, None)
    try:
        durable_files.write_new(out, template(names))
    except FileExistsError as error:
        raise ConfigError(f"{out} exists: give another --out, or move it away first") from error
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    session.show(
        {
            "output": str(out),
            "revokedSerialCount": len(names.serials),
            "revokedFingerprintCount": len(names.fingerprints),
            "revokedEntryCount": len(names),
        }
    )
    return EXIT_OK


# --- TLS ---


def _tls_status(session: Session) -> int:
    """Show what the asked node proves itself by.

    And how many certificates and enrolments it refuses there.

    \b
    Example: relaymesh --root data tls-status --json
    """
    session.show(session.ask("tls-status"))
    return EXIT_OK


def _install(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by `relaymesh mesh enroll` for this very host.")],
) -> int:
    """Give the running node of this host a later enrolment.

    It goes on with its work. When no node runs, start one with `relaymesh-node --enroll FILE` instead.

    \b
    Example: relaymesh --root data mesh install node-b.enroll
    """
    session.show(session.ask("mesh-install", file=str(file.absolute())))
    return EXIT_OK


def _certificate_names(serial: str | None, fingerprint: str | None, file: Path | None) -> CertificateNames:
    from node.trust_files import certificate_names, read_revocation_file

    listed = read_revocation_file(file) if file is not None else certificate_names((), ())
    return certificate_names([*listed.serials, *_words(serial)], [*listed.fingerprints, *_words(fingerprint)])


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def mesh_dir_of(session: Session, given: Path | None) -> Path:
    """Where the CA key lies: what was given, or what the node of this host founded. ConfigError when neither is."""
    from node.identity_files import FOUNDED_MESH

    if given is not None:
        return given
    root = session.choice.root
    if root is not None and (root / FOUNDED_MESH).is_dir():
        return root / FOUNDED_MESH
    raise ConfigError(
        "this needs the mesh's CA key: add --mesh DIR, the directory that `relaymesh mesh create` made, or ROOT/mesh "
        "of the node that founded the mesh"
    )

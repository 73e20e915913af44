"""What one `relaymesh-node` process was asked to be: its command line, environment and files, as one frozen value.

It promises that a `NodeConfig` can be used as it stands: addresses parse, files exist, the node id is known and settled
between flags and identity. Flags beat environment variables (`RELAYMESH_BIND` for `--bind`), which beat defaults.
Nothing is created or written here; whatever cannot be used is a ConfigError of one line that says what to do.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mesh.errors import ConfigError
from mesh.ids import NODE_ID_CHARS_MAX, Address, NodeId, parse_address, parse_node_id
from node.settings import ENVIRONMENT_PREFIX, SETTINGS_FILE, Settings, load_settings

DEFAULT_BIND = Address("127.0.0.1", 17888)
DEFAULT_RPC_PORT = 18443
DEFAULT_SLOTS = 4
PROFILES = ("local", "lan", "wan")
LOG_FORMATS = ("text", "json")

SLOTS_MAX = 1_024
SEEDS_MAX = 1_000
AGENT_FILES_MAX = 256
LABELS_MAX = 16
_LABEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,62})=([A-Za-z0-9._/:-]{0,63})")
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  (recognised in order to be refused)

_EPILOG = """\
examples:
  relaymesh-node --root data
      a mesh of one node on this host; its log says how other hosts join
  relaymesh-node --root data --enroll node-a.enroll --bind 10.0.0.1:17888 --seeds 10.0.0.2:17888
      a node of a mesh made by `relaymesh mesh create`; --enroll is needed once, and repeating it does no harm

Every flag can also be an environment variable: RELAYMESH_ROOT for --root, RELAYMESH_AGENTS and RELAYMESH_LABELS with
commas between values. Tuning lives in <root>/relaymesh-settings.json. All of it is read at the start; settings that
change while the node runs are taken in within 10 s, as far as that can be (see `relaymesh reload-settings --help`).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything that is settled before a node starts."""

    root: Path
    """Absolute; need not exist yet."""
    node_id: NodeId
    bind: Address
    rpc_bind: Address
    advertise: Address
    """Where peers send datagrams."""
    rpc_advertise: Address
    """Where peers open streams."""
    seeds: tuple[Address, ...]
    """May include our own address."""
    enroll: Path | None
    agents: tuple[Path, ...]
    labels: Mapping[str, str]
    slots: int
    profile: str
    log_format: str
    start_alone: bool
    """Take over what the database holds without asking a peer first (after a restore of a whole mesh)."""
    settings: Settings
    dev: bool = False
    """Start agent processes anew when their files have changed."""


def parse_config(argv: Sequence[str], environ: Mapping[str, str]) -> NodeConfig:
    """The configuration that a command line (without the program's name) and an environment ask for.

    Raises ConfigError for anything that cannot be used. `--help` and `--version` print and raise SystemExit(0).
    """
    chosen = _Choices(_parser().parse_args(argv), environ)
    root = _root(chosen)
    bind, rpc_bind, advertise, rpc_advertise = _addresses(chosen)
    seeds = _seeds(chosen)
    enroll = chosen.path("enroll")
    return NodeConfig(
        root=root,
        node_id=_node_id(chosen, root, enroll, joins=any(seed not in (bind, advertise) for seed in seeds)),
        bind=bind,
        rpc_bind=rpc_bind,
        advertise=advertise,
        rpc_advertise=rpc_advertise,
        seeds=seeds,
        enroll=enroll,
        agents=_agent_files(chosen),
        labels=_labels(chosen),
        slots=_slots(chosen),
        profile=chosen.one_of("profile", PROFILES, "lan"),
        log_format=chosen.one_of("log_format", LOG_FORMATS, "text"),
        start_alone=chosen.one_of("start_alone", ("true", "false"), "false") == "true",
        settings=load_settings(root / SETTINGS_FILE, environ),
        dev=chosen.one_of("dev", ("true", "false"), "false") == "true",
    )


def read_seeds_file(path: Path) -> tuple[Address, ...]:
    """The addresses in a seeds file: one a line or several with commas, `#` starts a comment.

    Raises ConfigError naming the file and line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"seeds file {path}: cannot be read ({_reason(error)})") from error
    seeds: list[Address] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            seeds.extend(_address_list(line.partition("#")[0]))
        except ConfigError as error:
            raise ConfigError(f"seeds file {path}, line {number}: {error}") from error
    return tuple(seeds)


def default_node_id(host_name: str) -> NodeId:
    """A host's name made into a node id: characters that are not allowed become `-`."""
    made = re.sub(r"[^A-Za-z0-9._-]", "-", host_name).lstrip("._-")[:NODE_ID_CHARS_MAX]
    if not made:
        raise ConfigError("this host's name gives no node id: give --node-id ID")
    return parse_node_id(made)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see relaymesh-node --help")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # slow to import, and rarely wanted

        parser.exit(0, f"relaymesh-node {version('relaymesh')}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="relaymesh-node",
        description="Run one node of a RelayMesh: it stores work, shares it with its peers, and runs it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", metavar="DIR", help="where this node keeps everything; made if it does not exist (required)")
    add("--node-id", metavar="ID", help="name of this node; default: its identity's name, else the host's name")
    add("--bind", metavar="H:P", help=f"UDP address for gossip; default {DEFAULT_BIND}")
    add("--rpc-bind", metavar="H:P", help=f"TCP address for streams; default: the host of --bind, :{DEFAULT_RPC_PORT}")
    add("--advertise", metavar="H:P", help="gossip address that peers use, when it is not --bind (NAT, 0.0.0.0)")
    add("--seeds", metavar="H:P,H:P", help="gossip addresses of some peers; this node's own may be among them")
    add("--seeds-file", metavar="F", help="the same from a file: one a line, # starts a comment")
    add("--enroll", metavar="FILE", help="enrolment made for this host by `relaymesh mesh enroll`")
    add("--agents", metavar="FILE.py", action="append", help="Python file with agents; may be repeated")
    add("--label", metavar="K=V", action="append", dest="labels", help="label for placing work; may be repeated")
    add("--slots", metavar="N", help=f"steps that run at the same time; default {DEFAULT_SLOTS}")
    add("--profile", metavar="NAME", help="timing: local, lan (default) or wan")
    add("--log-format", metavar="NAME", help="text (default) or json")
    add(
        "--start-alone",
        action="store_const",
        const="true",
        help="after a restore, work without having heard from any peer; with a damaged database, begin empty with the "
        "file set aside",
    )
    add(
        "--dev",
        action="store_const",
        const="true",
        help="for developing agents: when a .py file beside an --agents file has changed, the next run is of the new "
        "one; runs that have begun go on, and new agents or options need a restart",
    )
    add("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser


class _Choices:
    """Looks a choice up in the flags, then in the environment; an empty variable counts as unset."""

    def __init__(self, flags: argparse.Namespace, environ: Mapping[str, str]) -> None:
        self._flags = flags
        self._environ = environ

    def text(self, name: str) -> str | None:
        value: str | None = getattr(self._flags, name)
        return value if value is not None else self._environ.get(ENVIRONMENT_PREFIX + name.upper()) or None

    def several(self, name: str) -> list[str]:
        values: list[str] | None = getattr(self._flags, name)
        if values is not None:
            return values
        return [part for part in (self._environ.get(ENVIRONMENT_PREFIX + name.upper()) or "").split(",") if part]

    def address(self, name: str) -> Address | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return parse_address(text)
        except ConfigError as error:
            raise ConfigError(f"{flag(name)}: {error}") from error

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return None if text is None else _existing_file(flag(name), Path(text))

    def one_of(self, name: str, allowed: Sequence[str], default: str) -> str:
        value = self.text(name) or default
        if value not in allowed:
            raise ConfigError(f"{flag(name)} must be {' or '.join(allowed)}, not {value[:64]!r}")
        return value


def flag(name: str) -> str:
    """How a choice is spelled on the command line."""
    return "--label" if name == "labels" else "--" + name.replace("_", "-")


def _root(chosen: _Choices) -> Path:
    text = chosen.text("root")
    if text is None:
        raise ConfigError("--root DIR is required: the directory where this node keeps everything")
    root = Path(text).absolute()
    # os.path answers False where this user may not look; Path would raise.
    nearest = next(path for path in (root, *root.parents) if os.path.exists(path))
    if not os.path.isdir(nearest):
        raise ConfigError(f"--root {root}: {nearest} is not a directory; give another, or move that file away")
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"--root {root}: this user may not read and write {nearest}; give another or change its owner"
        )
    return root


def _addresses(chosen: _Choices) -> tuple[Address, Address, Address, Address]:
    bind = chosen.address("bind") or DEFAULT_BIND
    rpc_bind = chosen.address("rpc_bind") or Address(bind.host, DEFAULT_RPC_PORT)
    advertise = chosen.address("advertise")
    if advertise is None:
        for name, address in (("--bind", bind), ("--rpc-bind", rpc_bind)):
            if address.host in _WILDCARDS:
                raise ConfigError(
                    f"{name} {address} listens everywhere, which tells peers no address: add --advertise HOST:PORT, "
                    "the gossip address at which they reach this host"
                )
        if _is_loopback(rpc_bind) and not _is_loopback(bind):
            raise ConfigError(f"--rpc-bind {rpc_bind} cannot be reached by the peers that reach --bind {bind}")
        return bind, rpc_bind, bind, rpc_bind
    if advertise.host in _WILDCARDS:
        raise ConfigError(f"--advertise {advertise} is no address that a peer can reach: name this host's own")
    return bind, rpc_bind, advertise, Address(advertise.host, rpc_bind.port)


def _is_loopback(address: Address) -> bool:
    return address.host.startswith("127.") or address.host in ("::1", "localhost")


def _seeds(chosen: _Choices) -> tuple[Address, ...]:
    try:
        seeds = _address_list(chosen.text("seeds") or "")
    except ConfigError as error:
        raise ConfigError(f"--seeds: {error}") from error
    path = chosen.path("seeds_file")
    if path is not None:
        seeds += read_seeds_file(path)
    distinct = tuple(dict.fromkeys(seeds))
    if len(distinct) > SEEDS_MAX:
        raise ConfigError(f"{len(distinct)} seeds are given and {SEEDS_MAX} are allowed: a few reach the whole mesh")
    return distinct


def _address_list(text: str) -> tuple[Address, ...]:
    return tuple(parse_address(part) for part in text.split(",") if part.strip())


def _node_id(chosen: _Choices, root: Path, enroll: Path | None, *, joins: bool) -> NodeId:
    asked = chosen.text("node_id")
    if asked is not None:
        parse_node_id(asked)
    name, file = _identity_name(root, enroll)
    if name is not None:
        if asked is not None and asked != name:
            raise ConfigError(f"--node-id {asked} is not the name in {file}, which is {name}: leave --node-id away")
        return parse_node_id(name)
    if joins:
        raise ConfigError(
            "--seeds needs an identity of their mesh: make one where the mesh was made (`relaymesh mesh create --out "
            "DIR` makes a mesh) by `relaymesh mesh enroll --mesh DIR --node-id ID --out FILE`, then add --enroll FILE"
        )
    return parse_node_id(asked) if asked is not None else default_node_id(socket.gethostname())


def _identity_name(root: Path, enroll: Path | None) -> tuple[str | None, Path]:
    from node import identity_files  # brings in the cryptography library, which --help does without

    if enroll is not None:
        return identity_files.read_enrolment(enroll).name, enroll
    known = identity_files.load(root)
    return (known.name if known else None), root / identity_files.IDENTITY_FILE


def _agent_files(chosen: _Choices) -> tuple[Path, ...]:
    texts = list(dict.fromkeys(chosen.several("agents")))
    if len(texts) > AGENT_FILES_MAX:
        raise ConfigError(f"--agents is given {len(texts)} times and {AGENT_FILES_MAX} are allowed")
    files = tuple(_existing_file("--agents", Path(text)) for text in texts)
    for file in files:
        if file.suffix != ".py":
            raise ConfigError(
                f"--agents {file} is no Python file; executables are declared in <root>/agents/scripts.json"
            )
    return files


def _existing_file(name: str, path: Path) -> Path:
    if not os.path.isfile(path):
        raise ConfigError(f"{name} {path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{name} {path} may not be read by this user")
    return path.absolute()


def _labels(chosen: _Choices) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in chosen.several("labels"):
        match = _LABEL.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--label {text[:140]!r} is not KEY=VALUE: 1 to 63 and 0 to 63 of A-Z a-z 0-9 . _ / - (:)"
            )
        key, value = match.groups()
        if labels.setdefault(key, value) != value:
            raise ConfigError(f"--label {key} is given twice with different values")
    if len(labels) > LABELS_MAX:
        raise ConfigError(f"{len(labels)} labels are given and {LABELS_MAX} are allowed")
    return labels


def _slots(chosen: _Choices) -> int:
    text = chosen.text("slots")
    if text is None:
        return DEFAULT_SLOTS
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 0 <= int(text) <= SLOTS_MAX):
        raise ConfigError(f"--slots must be a whole number from 0 (run nothing here) to {SLOTS_MAX}, not {text[:20]!r}")
    return int(text)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (
        f"it is not UTF-8 text (byte {error.start})" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
    )

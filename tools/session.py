"""What every command shares: whom to ask, the namespace, how to show answers; and how a command is registered.

The shared options stand before the command, and are accepted after it too, where people type them. A command is a plain
function of a `Session` and its own options that returns its exit code.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.errors import ConfigError
from mesh.ids import parse_namespace
from tools.connection import ConnectionChoice, MeshClient
from tools.output import print_answer, print_json

EXIT_OK = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_CONFLICT = 4
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

Command = Callable[..., int]


@dataclass(slots=True, kw_only=True)
class Session:
    """One invocation of `relaymesh`."""

    choice: ConnectionChoice = field(default_factory=ConnectionChoice)
    namespace: str = "default"
    json: bool = False
    _client: MeshClient | None = field(default=None, init=False, repr=False)

    def ask(self, command: str, **args: Any) -> Any:
        """A node's answer; arguments that are None are left out. Raises the classes of `mesh.errors`."""
        if self._client is None:
            parse_namespace(self.namespace)
            self._client = MeshClient(self.choice.targets(os.environ))
        given = {name: value for name, value in args.items() if value is not None}
        return self._client.call(command, given, namespace=self.namespace)

    def root_of_host(self) -> Path:
        """The folder of a node of this host, for what works on its files. ConfigError when none was named."""
        root = self.choice.root or os.environ.get("RELAYMESH_ROOT")
        if not root:
            raise ConfigError("this works on the files of a node of this host: give --root DIR")
        return Path(root)

    def show(self, answer: Any, *, columns: Sequence[str] = ()) -> None:
        """Print an answer as JSON or for people."""
        if self.json:
            print_json(answer)
        else:
            print_answer(answer, columns=columns)

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()


RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        readable=False,  # whether this user may use it is found out, and better told, when it is used
        help="Ask the node of this host that runs on DIR. [env: RELAYMESH_ROOT]",
    ),
]
PeerOption = Annotated[
    str | None,
    typer.Option(
        "--peer",
        metavar="HOST:PORT",
        help="Ask any node of the mesh at its stream address; several with commas are tried in turn. "
        "[env: RELAYMESH_PEER]",
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        readable=False,
        help="Enrolment file that proves who you are to --peer; default: the identity under --root. "
        "[env: RELAYMESH_IDENTITY]",
    ),
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="Namespace of the work. [default: default]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def make_session(
    base: Session | None,
    *,
    root: Path | None,
    peer: str | None,
    identity: Path | None,
    namespace: str | None,
    json: bool,
) -> Session:
    """`base` with what was given here on top."""
    base = base or Session()
    choice = base.choice
    if root is not None:
        choice = replace(choice, root=root)
    if peer is not None:
        choice = replace(choice, peer=peer)
    if identity is not None:
        choice = replace(choice, identity=identity)
    return replace(base, choice=choice, namespace=namespace or base.namespace, json=json or base.json)


def _hidden(option: Any) -> Any:
    kind, info = option.__origin__, option.__metadata__[0]
    shown = typer.Option(*info.param_decls, metavar=info.metavar, readable=info.readable, hidden=True)
    return Annotated[kind, shown]


# Hidden, because the first page of help lists them already; --json stays visible on every command.
_SHARED: dict[str, tuple[Any, Any]] = {
    "root": (_hidden(RootOption), None),
    "peer": (_hidden(PeerOption), None),
    "identity": (_hidden(IdentityOption), None),
    "namespace": (_hidden(NamespaceOption), None),
    "json": (JsonOption, False),
}


def command(app: typer.Typer, name: str, *, panel: str, hidden: bool = False) -> Callable[[Command], Command]:
    """Register a function `(session, own options) -> exit code` as a command that takes the shared options too.

    `hidden` keeps it out of the list of commands, which a very long name would leave no room for.
    """

    def register(body: Command) -> Command:
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]

        def run(ctx: typer.Context, **options: Any) -> int:
            shared = {key: options.pop(key) for key in _SHARED}
            session = make_session(ctx.obj, **shared)
            try:
                return body(session, **options)
            finally:
                session.close()

        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", kind, annotation=typer.Context)]
        parameters += [parameter.replace(kind=kind) for parameter in own]
        parameters += [
            inspect.Parameter(key, kind, annotation=annotation, default=default)
            for key, (annotation, default) in _SHARED.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = body.__doc__
        app.command(name, rich_help_panel=panel, hidden=hidden)(run)
        return body

    return register

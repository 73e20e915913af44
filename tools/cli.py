"""`relaymesh`: the command that people and scripts use to talk to a mesh.

It promises exit codes (0 ok, 1 negative answer, 2 usage, 3 unreachable, 4 conflict), answers on standard output, and
for anything else one line on standard error that says what to do. With `--json` an error is an object on standard
output as well. What only some commands need is imported by those: `relaymesh` starts in about 100 ms.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mesh.errors import (
    ConfigError,
    ConflictError,
    FrameError,
    LimitError,
    RelayMeshError,
    StoreError,
    UnavailableError,
)
from mesh.protocol import this_release
from node.streams.rpc_messages import error_code
from tools.command_parts import GroupOfParts, Part, module_part
from tools.output import escape, print_json
from tools.session import (
    EXIT_CONFLICT,
    EXIT_INTERRUPTED,
    EXIT_NEGATIVE,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    IdentityOption,
    JsonOption,
    NamespaceOption,
    PeerOption,
    RootOption,
    Session,
    command,
    make_session,
)

# Every other RelayMeshError, such as a task that does not exist, is a negative answer.
_EXIT_CODES: tuple[tuple[type[RelayMeshError], int], ...] = (
    (ConflictError, EXIT_CONFLICT),
    (LimitError, EXIT_USAGE),
    (ConfigError, EXIT_USAGE),
    (UnavailableError, EXIT_UNREACHABLE),
    (StoreError, EXIT_UNREACHABLE),
    (FrameError, EXIT_UNREACHABLE),
)

# Typer's own usage errors; their base class has moved between its releases, its public subclass has not.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in typer.BadParameter.__mro__
    if issubclass(kind, Exception) and kind.__name__ in ("ClickException", "UsageError")
)


def _register_mesh(app: typer.Typer) -> None:
    from tools import ca_commands, mesh_commands, trust_commands

    trust_commands.register(app, mesh_commands.mesh_app)
    ca_commands.register(mesh_commands.mesh_app)
    app.add_typer(mesh_commands.mesh_app, name="mesh")


def _register_schedule(app: typer.Typer) -> None:
    from tools.schedule_commands import schedule_app

    app.add_typer(schedule_app, name="schedule")


def _register_quarantine(app: typer.Typer) -> None:
    from tools.quarantine_commands import quarantine_app

    app.add_typer(quarantine_app, name="quarantine")


def _register_chaos(app: typer.Typer) -> None:
    from tools.chaos_commands import chaos_app

    app.add_typer(chaos_app, name="chaos")


class _Root(GroupOfParts):
    """The command group that turns every way of failing into one line and an exit code."""

    parts = (
        module_part(
            "work_commands",
            *("submit", "submit-workflow", "task", "tasks", "workflow", "result", "wait", "cancel"),
            *("explain", "logs"),
        ),
        module_part(
            "recovery_commands",
            *("replay", "replay-batch", "dead", "dead-export", "task-export", "lease-report"),
        ),
        module_part(
            "node_commands",
            *("agents", "members", "mesh-summary", "health", "stats", "metrics", "ownership-events"),
            *("lease-conflicts", "cluster-state", "cluster-epoch-bump", "mesh-recover", "maintenance"),
        ),
        module_part("benchmark_commands", "benchmark-run"),
        module_part("batch_commands", "submit-batch"),
        module_part("hold_commands", "pause", "resume", "holds", "drain"),
        module_part("watch_commands", "top", "doctor"),
        module_part("garbage_commands", "purge", "mesh-prune"),
        module_part("upgrade_commands", "upgrade-rehearsal"),
        Part(_register_mesh, ("mesh", "tls-status", "node-rpc-revocation-template")),
        module_part(
            "replication_commands",
            *("convergence-report", "replication-export", "replication-import", "replication-verify"),
            "replication-controller",
        ),
        module_part("schema_commands", "schema-migrations", "schema-rollback"),
        module_part("settings_commands", "reload-settings", "settings-history"),
        module_part("bootstrap_commands", "bootstrap-from"),
        module_part("snapshot_commands", "snapshot-export", "snapshot-import"),
        Part(_register_quarantine, ("quarantine",)),
        Part(_register_schedule, ("schedule",)),
        Part(_register_chaos, ("chaos",)),
    )

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        sys.exit(_run(lambda: super(_Root, self).main(given, *rest, **extra), json="--json" in given))


def _run(invoke: Any, *, json: bool) -> int:
    try:
        return int(invoke() or EXIT_OK)
    except RelayMeshError as error:
        _report(error_code(error), str(error), json=json, retry_after_ms=getattr(error, "retry_after_ms", None))
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_NEGATIVE)
    except _USAGE_ERRORS as error:
        _report("usage", _usage_text(error), json=json)
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away. Standard output cannot be flushed any more, so nothing may try at exit.
        sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115  (lives until the process ends)
        return EXIT_NEGATIVE


def _usage_text(error: Any) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "relaymesh"
    return f"{str(error.format_message()).rstrip('.')}; see `{where} --help`"


def _report(code: str, message: str, *, json: bool, retry_after_ms: int | None = None) -> None:
    if json:
        wait = {} if retry_after_ms is None else {"retryAfterMs": retry_after_ms}
        print_json({"error": {"code": code, "message": message, **wait}})
    print(f"relaymesh: {escape(' '.join(message.split()))}", file=sys.stderr)


app = typer.Typer(
    name="relaymesh", cls=_Root, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    root: RootOption = None,
    peer: PeerOption = None,
    identity: IdentityOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """Talk to a RelayMesh: submit work to any node, follow it, and look after the mesh.

    \b
    Examples:
      relaymesh demo
      relaymesh --root data submit --agent echo --input hello --wait
      relaymesh --root data tasks --status RUNNING
      relaymesh --peer 10.0.0.2:18443 --identity me.enroll members --json

    \b
    Exit codes: 0 ok, 1 negative answer (not found, not successful),
    2 usage or limit, 3 no node could answer, 4 conflict with what is stored.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(EXIT_USAGE)
    ctx.obj = make_session(None, root=root, peer=peer, identity=identity, namespace=namespace, json=json)


def _version(session: Session) -> int:
    """Print the versions of this command and a node.

    The node is asked only when --root or --peer is given.

    \b
    Example: relaymesh --root data version --json
    """
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        answer: dict[str, Any] = {"version": version("relaymesh")}
    except PackageNotFoundError:
        answer = {"version": "unknown (run from a source tree that is not installed)"}
    answer["protocol"] = this_release().versions
    if session.choice.root is not None or session.choice.peer is not None:
        answer["node"] = session.ask("version")
    session.show(answer)
    return EXIT_OK


def _demo(
    session: Session,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="Files to work on. [default: Python's own library]")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes running and say how to talk to them.")] = False,
) -> int:
    """Run three nodes here, kill one, check the result.

    A workflow over the files of DIRECTORY runs on three real nodes on this host. The node that owns most running steps
    is killed, and the result is compared with the same job done without a mesh. Exit 0 only if all matched.
    """
    from tools.demo import run_demo

    return run_demo(directory, keep=keep, json=session.json)


def _bench(ctx: typer.Context) -> int:
    """Measure; see `relaymesh bench --help`."""
    from tools.bench import app as bench_app

    shared: Session = ctx.obj
    arguments = [*ctx.args, "--json"] if shared.json and "--json" not in ctx.args else ctx.args
    return int(
        typer.main.get_command(bench_app).main(arguments, prog_name="relaymesh bench", standalone_mode=False) or 0
    )


command(app, "demo", panel="Try")(_demo)
# Every option after `bench` belongs to it, --help too.
_AS_THEY_ARE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command("bench", context_settings=_AS_THEY_ARE, rich_help_panel="Try")(_bench)
command(app, "version", panel="Try")(_version)


def main() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale knows no such letter, show its number instead of failing.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="relaymesh")


if __name__ == "__main__":
    main()

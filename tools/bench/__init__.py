"""`relaymesh bench`: figures of this machine, printed as a table or, with --json, as one object. Not tests: nothing
fails for being slow. Compare ratios within one run; a busy machine halves the rest.

Each module measures one thing: `store`, `submits`, `packets`, `tasks`, `idle`, `bootstrap`, `catch_up`, `pull`,
`verify`, `purge`; `compare` runs other task queues beside ours, through `peer_adapter`. `load` is the clients,
`replicas` and `behind` are stores without their nodes, `machine` reads /proc, `report` prints.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from tools.bench.report import Report

app = typer.Typer(name="bench", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        metavar="DIR",
        help="Where databases are made and removed again; choose the disk to measure. [default: the temporary folder]",
    ),
]


@app.callback()
def _bench() -> None:
    """Measure this machine. Every command prints its parameters, so that a run can be repeated."""


def _run(measure: Callable[[Path], Report], directory: Path | None, *, json: bool) -> None:
    with _scratch(directory) as scratch:
        report = measure(scratch)
    report.show(json=json)


@contextlib.contextmanager
def _scratch(directory: Path | None) -> Iterator[Path]:
    if directory is not None and not directory.is_dir():
        raise ConfigError(f"--directory {directory} is no directory: create it first")
    with tempfile.TemporaryDirectory(prefix="relaymesh-bench-", dir=directory) as scratch:
        yield Path(scratch)


@app.command("store")
def _store(
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="At each concurrency.")] = 5.0,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Count durable submits through the store.

    Per second, beside SQLite alone on the same disk.
    """
    from tools.bench.store import bench_store

    _run(lambda scratch: bench_store(scratch, seconds=seconds), directory, json=json)


@app.command("submits")
def _submits(
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Submits in all.")] = 10_000,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Clients at the same time.")] = 16,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Count durable submits through a real node.

    Per second, from concurrent clients.
    """
    from tools.bench.submits import bench_submits

    _run(lambda scratch: bench_submits(scratch, count=count, clients=clients), directory, json=json)


@app.command("packets")
def _packets(
    count: Annotated[int, typer.Option(min=10, max=100_000, help="Datagrams of each kind.")] = 5_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Count gossip datagrams taken in.

    Verified, decoded and applied per second, beside their cryptography alone.
    """
    from tools.bench.packets import bench_packets

    _run(lambda scratch: bench_packets(scratch, count=count), directory, json=json)


@app.command("tasks")
def _tasks(
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tasks in the burst.")] = 5_000,
    nodes: Annotated[int, typer.Option(min=1, max=20, help="Nodes of the mesh; all are submitted to.")] = 1,
    agent: Annotated[str, typer.Option(help="`echo` runs in the node, `python` in agent processes.")] = "python",
    clients: Annotated[int, typer.Option(min=1, max=256, help="Clients at the same time.")] = 64,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Of each node.")] = 4,
    paced: Annotated[int, typer.Option(min=0, max=100_000, help="Tasks one at a time, after the burst.")] = 200,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Time tasks from submit to SUCCESS.

    Through real nodes: rate, latency, CPU and memory.
    """
    from tools.bench.tasks import AGENTS, bench_tasks

    if agent not in AGENTS:
        raise ConfigError(f"--agent {agent}: choose one of {', '.join(AGENTS)}")
    _run(
        lambda scratch: bench_tasks(
            scratch, count=count, nodes=nodes, agent=agent, clients=clients, slots=slots, paced=paced
        ),
        directory,
        json=json,
    )


@app.command("idle")
def _idle(
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long to watch.")] = 60.0,
    nodes: Annotated[int, typer.Option(min=1, max=50, help="Nodes of the mesh.")] = 3,
    profile: Annotated[str, typer.Option(help="local, lan or wan.")] = "lan",
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Weigh a mesh that has nothing to do.

    Its CPU, writes, memory and traffic.
    """
    from tools.bench.idle import bench_idle

    _run(lambda scratch: bench_idle(scratch, nodes=nodes, seconds=seconds, profile=profile), directory, json=json)


@app.command("bootstrap")
def _bootstrap(
    rows: Annotated[int, typer.Option(min=1, max=10_000_000, help="Rows of the donor.")] = 100_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Fill an empty node by a snapshot.

    Seconds and MB/s, and how late the donor is meanwhile.
    """
    from tools.bench.bootstrap import bench_bootstrap

    _run(lambda scratch: bench_bootstrap(scratch, rows=rows), directory, json=json)


@app.command("catch-up")
def _catch_up(
    rows: Annotated[int, typer.Option(min=2, max=10_000_000, help="Rows that were missed.")] = 10_000,
    held: Annotated[int, typer.Option(min=0, max=10_000_000, help="Rows that both replicas hold.")] = 100_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Have a replica pull what it missed.

    Seconds and rows a second, over TLS on loopback.
    """
    from tools.bench.catch_up import bench_catch_up

    _run(lambda scratch: bench_catch_up(scratch, rows=rows, held=held), directory, json=json)


@app.command("pull")
def _pull(
    rows: Annotated[int, typer.Option(min=4, max=10_000_000, help="Rows of the full replica.")] = 100_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Weigh a pull of 1, 100 and 10,000 missing rows.

    Bytes on the wire, and how many of them are no rows. The first measurements beside it had 1,000,000 rows.
    """
    from tools.bench.pull import bench_pull

    _run(lambda scratch: bench_pull(scratch, rows=rows), directory, json=json)


@app.command("verify")
def _verify(
    rows: Annotated[int, typer.Option(min=2, max=10_000_000, help="Rows of each replica.")] = 100_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two replicas, and repair one lost row."""
    from tools.bench.verify import bench_verify

    _run(lambda scratch: bench_verify(scratch, rows=rows), directory, json=json)


@app.command("purge")
def _purge(
    tasks: Annotated[int, typer.Option(min=1, max=10_000_000, help="Tasks in all.")] = 100_000,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Watch three replicas stay small while tasks come and go.

    Rows, tombstones, file and version vector after every tenth of the tasks. 1,000,000 take half an hour or so.
    """
    from tools.bench.purge import bench_purge

    _run(lambda scratch: bench_purge(scratch, tasks=tasks), directory, json=json)


@app.command("compare")
def _compare(
    peers: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the peers' benchmark, run_peers.py.")],
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Peers, with commas. [default: six of them]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Every system once a round; medians are shown.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One round with a fifth of the tasks.")] = False,
    environment: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the peers' virtual environment here, for the next run.")
    ] = None,
    directory: DirectoryOption = None,
    json: JsonOption = False,
) -> None:
    """Run the task queues that people use beside this one.

    The same work in one run, and the ratios: ours divided by theirs. The peers are installed and started by their
    benchmark, which says on standard error how far it is.
    """
    from tools.bench.compare import PEERS, compare, rows
    from tools.output import print_answer, print_json

    chosen = PEERS if only is None else tuple(name.strip() for name in only.split(","))
    with _scratch(directory) as scratch:
        answer = compare(peers, scratch, only=chosen, rounds=rounds, quick=quick, environment=environment)
    if json:
        print_json(answer)
    else:
        print_answer(rows(answer))

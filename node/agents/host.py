"""An agent-host process: imports the agent files once, then runs one job after another until its socket ends.

Its stdout and stderr are the attempt's log; the protocol has a socket of its own, which children do not inherit. It is
a subreaper, so that whatever a handler leaves running stays its child: then it asks to be retired, and the whole tree
ends.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import msgspec

from node.agents.api import registered
from node.agents.handlers import Handler, describe_exception
from node.agents.host_link import HostLink
from node.agents.process_tree import become_subreaper
from node.agents.wire import (
    HOST_SOCKET_FD,
    Done,
    FromHost,
    Hello,
    LoadFailed,
    Offer,
    Run,
    encode_frame,
)


def main(arguments: list[str]) -> int:
    """Serve jobs from descriptor HOST_SOCKET_FD. Arguments: the most bytes of a result, then the agent files."""
    result_bytes_max, *files = arguments
    become_subreaper()
    faulthandler.enable()  # a segfault then says in the log which line of the handler it was
    for stream in (sys.stdout, sys.stderr):
        # By line, so that the log of a handler that is killed holds what it printed.
        stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    os.set_inheritable(HOST_SOCKET_FD, False)
    with socket.socket(fileno=HOST_SOCKET_FD) as connection:
        handlers, opening = load(files, int(result_bytes_max))
        connection.sendall(encode_frame(opening))
        if isinstance(opening, Hello):
            Host(connection, handlers).serve()
    return 0


class Host:
    """The loop that runs jobs. SIGTERM interrupts the running handler, and then ends the loop."""

    def __init__(self, connection: socket.socket, handlers: dict[str, Handler]) -> None:
        self._link = HostLink(connection)
        self._handlers = handlers
        self._pid = os.getpid()
        self._ending = False
        # SIGINT interrupts plain Python, Trio and asyncio alike, each in its own safe way, if Python's own handler is
        # set.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, self._end_softly)

    def serve(self) -> None:
        """Run jobs until the node closes the socket or asks for the end."""
        gc.freeze()  # the imported modules need not be walked again by each collection
        try:
            while not self._ending:
                job = self._link.receive()
                if job is None:
                    return
                if isinstance(job, Run):  # else a cancel that came after its job had ended
                    self._link.send(encode_frame(self.run(job)))
        except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return  # the node is gone or ended us: there is nobody left to answer

    def run(self, job: Run) -> Done:
        """Run one job to its end, and say whether this process can be used again."""
        handler = self._handlers.get(job.agent)
        if handler is None:
            return Done(
                "failed", b"", f"agent {job.agent!r} is no longer in the agent files; restart the node", retire=True
            )
        done = handler.run(job, self._link, self._link.begin())
        if os.getpid() != self._pid:
            os._exit(0)  # the handler forked and its child came back out of it: only the parent may answer
        self._link.end()
        sys.stdout.flush()
        sys.stderr.flush()
        if has_children() or self._link.is_broken:
            return msgspec.structs.replace(done, retire=True)
        return done

    def _end_softly(self, _signum: int, _frame: object) -> None:
        self._ending = True
        signal.raise_signal(signal.SIGINT)


def has_children() -> bool:
    """Is anything left that a handler started? Sees running and dead ones, and takes no exit status from anybody."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def load(files: list[str], result_bytes_max: int) -> tuple[dict[str, Handler], FromHost]:
    """Import the files; the handlers by name, and the message that tells the node how it went."""
    file = ""
    try:
        for file in files:
            known = len(registered)
            import_file(Path(file))
            if len(registered) == known:
                return {}, LoadFailed(file, 0, 'it defines no agent: put @agent("name") above a function')
        handlers = {name: Handler(spec, result_bytes_max=result_bytes_max) for name, spec in registered.items()}
    except BaseException as error:  # a module may even call sys.exit(): it is still the file's fault, and told as such
        traceback.print_exception(error, file=sys.stderr)
        return {}, LoadFailed(file, failing_line(error, file), describe_exception(error))
    return handlers, Hello([offer(handler) for handler in handlers.values()])


def import_file(file: Path) -> None:
    """Run a file as a module named after it, with its own folder first on the path, as `python file` would have it."""
    sys.path.insert(0, str(file.parent))
    name = file.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"agents_in_{name}"  # never put a user's module in the place of another one
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def failing_line(error: BaseException, file: str) -> int:
    """The innermost line of `file` that `error` came through; 0 when it is not known."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno or 0
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] or 0 if lines else 0


def offer(handler: Handler) -> Offer:
    """What the node needs to know of an agent."""
    spec = handler.spec
    return Offer(
        name=spec.name,
        timeout_s=spec.timeout_s,
        max_attempts=spec.retry.max_attempts,
        base_backoff_ms=spec.retry.base_ms,
        max_backoff_ms=spec.retry.max_ms,
        concurrency=spec.concurrency,
    )

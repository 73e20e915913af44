"""The agent that the clients of a real mesh have run. Nodes load this file by `--agents`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from mesh.fences import Fence
from relaymesh import Context, Fail, Retry, agent

MAX_ATTEMPTS = 4
"""`clients` draws at most one failure less for a step that is to succeed in the end."""


@agent("hunted", timeout_s=60, retry=Retry(max_attempts=MAX_ATTEMPTS, base_ms=50, max_ms=400))
def hunted(ctx: Context, payload: dict[str, Any]) -> str:
    """Note the run, work for `seconds`, then end as the payload says; the result names the lease of the run."""
    # The node is read from the fence: a run under another node's lease must show as such.
    journal = Path(payload["journal"]) / Fence.decode(ctx.fence).node
    _note(journal, "start", ctx)
    if payload.get("poison"):
        _kill_the_node()
    time.sleep(payload["seconds"])
    if payload.get("crash") and ctx.attempt == 1:
        os._exit(1)
    if payload.get("doomed"):
        raise Fail("doomed from the start")
    if ctx.attempt <= payload.get("fails", 0):
        raise RuntimeError(f"fails until attempt {payload['fails'] + 1}")
    _note(journal, "end", ctx)
    return json.dumps({"step": ctx.step_id, "fence": ctx.fence, "pad": payload.get("pad", "")})


def _kill_the_node() -> None:
    """What no agent should be able to do, but a faulty driver or the kernel's hunt for memory does."""
    pid = os.getpid()
    while pid > 1:
        process = Path("/proc", str(pid))
        if b"--node-id" in (process / "cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
            return
        pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])


def _note(journal: Path, word: str, ctx: Context) -> None:
    # One small write to a file opened for appending is not torn by the writes of other processes.
    with journal.open("ab", buffering=0) as file:
        file.write(f"{word} {ctx.step_id} {ctx.attempt} {ctx.fence} {time.time():.3f}\n".encode())

"""Agents for tests with real processes. Each run leaves lines in a journal file, so that tests can count runs."""

import ctypes
import json
import os
import subprocess
import time
from pathlib import Path

from relaymesh import Context, Fail, agent

MIB = 1024 * 1024


def note(payload: dict, *words: object) -> None:
    """Append one line; a single small write to a file opened for appending is not torn by other processes."""
    if "journal" in payload:
        with open(payload["journal"], "ab", buffering=0) as journal:
            journal.write((" ".join(map(str, words)) + "\n").encode())


@agent("work", timeout_s=120)
def work(ctx: Context, payload: dict) -> str:
    """Work for `seconds`; the result names the lease under which it was made."""
    note(payload, "start", ctx.step_name, ctx.attempt, ctx.fence)
    time.sleep(payload.get("seconds", 0))
    note(payload, "end", ctx.step_name, ctx.attempt, ctx.fence)
    return json.dumps({"fence": ctx.fence, "attempt": ctx.attempt, "said": payload.get("say", "")})


@agent("hold-gil", timeout_s=120)
def hold_gil(payload: dict) -> str:
    """One C call that holds the interpreter lock all the time: PyDLL does not release it, a CDLL would."""
    ctypes.PyDLL(None).usleep(int(payload["seconds"] * 1_000_000))
    return "held"


@agent("segfault", timeout_s=60)
def segfault(payload: dict) -> str:
    """Die as a broken extension module would."""
    ctypes.string_at(0)
    return "unreachable"


@agent("hog", timeout_s=60)
def hog(payload: dict) -> str:
    """Take far more memory than an agent may have."""
    return str(len(bytearray(payload["mib"] * MIB)))


@agent("brood", timeout_s=120)
def brood(ctx: Context, payload: dict) -> str:
    """Start many children that hide in sessions of their own, and go on for `seconds`."""
    for _ in range(payload["children"]):
        subprocess.Popen(["sleep", payload["nap"]], start_new_session=True)
    note(payload, "start", ctx.step_name, ctx.attempt, ctx.fence)
    time.sleep(payload.get("seconds", 0))
    return str(payload["children"])


@agent("stubborn", timeout_s=120)
def stubborn(ctx: Context, payload: dict) -> str:
    """Have a grandchild that notes each SIGTERM and goes on; all of the family runs until it is killed."""
    journal = payload["journal"]
    grandchild = f"trap 'echo term >> {journal}' TERM; echo grandchild $$ >> {journal}; while :; do sleep 0.05; done"
    child = ["sh", "-c", 'trap : TERM; sh -c "$0"; wait; true', grandchild]
    subprocess.run(child, check=False)
    return "nobody ended it"


@agent("when-there", timeout_s=60)
def when_there(ctx: Context, payload: dict) -> str:
    """Fail for good until a file exists."""
    note(payload, "start", ctx.step_name, ctx.attempt, ctx.fence)
    if not Path(payload["file"]).exists():
        raise Fail("the file is not there")
    return "it is there"


@agent("whoami", timeout_s=60)
def whoami(ctx: Context, payload: str) -> str:
    """Say under which process it runs."""
    return str(os.getpid())

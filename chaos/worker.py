"""The other end of `worker_pool`: a process that does one call after another. Started as `python -m chaos.worker FD`.

Everything it has to say besides results goes to standard error, which is a file of the pool's: that is where the stacks
of a call that hangs, or of a process that crashes, are found.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from multiprocessing.connection import Connection

from chaos.worker_pool import Answer, Call


def main(argv: list[str]) -> int:
    """Serve calls from the pipe whose number is given until the pool closes it."""
    faulthandler.enable()
    pool: Connection[Answer, Call] = Connection(int(argv[0]))
    while True:
        try:
            call = pool.recv()
        except EOFError:
            return 0
        pool.send(_do(call))


def _do(call: Call) -> Answer:
    # Its watchdog is no Python thread: it prints all stacks and ends the process even when no bytecode runs any more.
    faulthandler.dump_traceback_later(call.limit_s, exit=True)
    try:
        return call.function(*call.args), ""
    except Exception:  # handed to whoever asked, with the stack
        return None, traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

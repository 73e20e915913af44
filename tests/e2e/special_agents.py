"""An agent that only some nodes of a test mesh have."""

import time

from relaymesh import agent


@agent("special", timeout_s=60)
def special(payload: dict) -> str:
    """Take `seconds`, then say so."""
    with open(payload["journal"], "ab", buffering=0) as journal:
        journal.write(b"start\n")
    time.sleep(payload.get("seconds", 0))
    return "special"

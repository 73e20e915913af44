"""For all tests: the signals of a process that was started from a terminal, however this one was started."""

from __future__ import annotations

import signal

# A shell that starts something in the background lets it ignore interrupts, and children inherit that. Processes which
# a test ends by SIGINT would never end, and `with Popen(...)` would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""Cuts between addresses of this host, made by nftables, and proof that nothing crossed them.

A cut drops packets where they *arrive*, so that a sender notices nothing, as on a real broken line; a leaky one drops
some of them. Two counters belong to each cut: what it stopped, and what passed from one side to the other all the same.
Everything lives in one table whose name carries this process; no other rule of the host is touched, and tables of
processes that died are swept away.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from chaos.real.owner_marks import is_stale, own_mark
from mesh.errors import ConfigError, UnavailableError

_NFT_S = 10.0  # one call takes some 2 ms
_SHARES = 10_000  # the finest share that is told apart from none


def available() -> str | None:
    """None when cuts can be made here, else one line that says why not."""
    if shutil.which("nft") is None:
        return "the command `nft` is not installed"
    checked = _run(["--check", "add table inet relaymesh_check"])
    if checked.returncode != 0:
        return f"nft may not change the firewall here: {_first_line(checked.stderr)}"
    return None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one counter saw."""

    packets: int
    octets: int


class Cut:
    """One broken line. It heals at `heal`, at the end of its `with` block, or with its firewall."""

    def __init__(self, firewall: Firewall, number: int) -> None:
        self._firewall = firewall
        self._number = number
        self._healed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    def blocked(self) -> Traffic:
        """What it stopped so far: above zero proves that somebody tried."""
        return self._firewall.traffic(f"blocked_{self._number}")

    def crossed(self) -> Traffic:
        """What passed all the same. Unless only a share was to be stopped: not one byte, or the cut is no cut."""
        return self._firewall.traffic(f"crossed_{self._number}")

    def heal(self) -> None:
        """Let packets pass again. The counters keep their last values; healing twice is harmless."""
        if not self._healed:
            self._firewall.remove_chains(self._number)
            self._healed = True


class Firewall:
    """A private nftables table for the time of its `with` block."""

    def __init__(self) -> None:
        self.table = own_mark()
        self._cuts = 0

    def __enter__(self) -> Self:
        sweep()
        _nft(f"add table inet {self.table}; flush table inet {self.table}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _nft(f"delete table inet {self.table}")

    def cut(self, here: Iterable[str], there: Iterable[str], *, one_way: bool = False) -> Cut:
        """Stop packets between two groups of addresses; `one_way` stops only those from `here` to `there`.

        Connections that are open already are cut too. Raises ConfigError for text that is no address.
        """
        ours, theirs = _checked(here), _checked(there)
        return self.drop(pair for a in ours for b in theirs for pair in ([(a, b)] if one_way else [(a, b), (b, a)]))

    def drop(self, flows: Iterable[tuple[str, str]], *, share: float = 1.0) -> Cut:
        """Stop packets from a first address to a second one, for each of these pairs; of them all only this share.

        Raises ConfigError for text that is no address.
        """
        self._cuts += 1
        number = self._cuts
        flow = _flow(flows)
        # The kernel draws anew for every packet; a share of one needs no draw.
        drawn = "" if share >= 1 else f"numgen random mod {_SHARES} < {round(share * _SHARES)} "
        table = f"inet {self.table}"
        _nft(
            "\n".join(
                [
                    f"add counter {table} blocked_{number}",
                    f"add counter {table} crossed_{number}",
                    # Two chains on one hook: what the first drops never reaches the second, which counts leaks.
                    f"add chain {table} cut_{number} {{ type filter hook input priority -10; }}",
                    f"add chain {table} watch_{number} {{ type filter hook input priority 10; }}",
                    f"add rule {table} cut_{number} {flow} {drawn}counter name blocked_{number} drop",
                    f"add rule {table} watch_{number} {flow} counter name crossed_{number}",
                ]
            )
        )
        return Cut(self, number)

    def traffic(self, counter: str) -> Traffic:
        """The present value of one named counter of this table."""
        listed = _nft_json(f"list counter inet {self.table} {counter}")
        for item in listed:
            if "counter" in item:
                return Traffic(packets=item["counter"]["packets"], octets=item["counter"]["bytes"])
        raise UnavailableError(f"nft lists no counter {counter} in table {self.table}")

    def remove_chains(self, number: int) -> None:
        """Take away the rules of one cut and leave its counters."""
        # The watching chain goes first: a packet let through between the two steps is no leak.
        chains = (f"watch_{number}", f"cut_{number}")
        table = f"inet {self.table}"
        _nft("\n".join(f"flush chain {table} {chain}\ndelete chain {table} {chain}" for chain in chains))


def sweep() -> list[str]:
    """Delete the tables of processes that ended without doing so, and name them."""
    swept = []
    for item in _nft_json("list tables"):
        name = item.get("table", {}).get("name", "")
        if is_stale(name):
            _nft(f"delete table inet {name}")
            swept.append(name)
    return swept


def _flow(flows: Iterable[tuple[str, str]]) -> str:
    pairs = [" . ".join(_checked(pair)) for pair in dict.fromkeys(flows)]
    return "ip saddr . ip daddr { " + ", ".join(pairs) + " }"


def _checked(addresses: Iterable[str]) -> list[str]:
    try:
        checked = [str(ipaddress.IPv4Address(address)) for address in addresses]
    except ValueError as error:
        raise ConfigError(f"a cut is made between IPv4 addresses: {error}") from error
    if not checked:
        raise ConfigError("a cut needs at least one address on each side")
    return checked


def _nft_json(command: str) -> list[dict[str, Any]]:
    done = _run(["--json", *command.split()])
    if done.returncode != 0:
        raise UnavailableError(f"nft refused `{command}`: {_first_line(done.stderr)}")
    items: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return items


def _nft(commands: str) -> None:
    # All commands of one call are one transaction: all of them happen, or none.
    done = _run(["--file", "-"], commands)
    if done.returncode != 0:
        raise UnavailableError(f"nft refused a change: {_first_line(done.stderr)}")


def _run(arguments: list[str], commands: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nft", *arguments], input=commands, capture_output=True, text=True, timeout=_NFT_S, check=False
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"

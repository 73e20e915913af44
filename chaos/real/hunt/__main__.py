"""`python -m chaos.real.hunt`: many hunts, one seed after the other; exits 1 when one found something.

A hunt that found nothing leaves nothing. Of the others the directory stays, with databases, logs and journals.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.real.hunt.drive import hunt


def main(arguments: list[str] | None = None) -> int:
    """Run the hunts that the command line asks for, and print what each found."""
    parser = argparse.ArgumentParser(prog="python -m chaos.real.hunt", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--hunts", type=int, default=1, help="how many seeds from there on (1)")
    parser.add_argument("--seconds", type=float, default=25.0, help="how long faults and clients go on (25)")
    parser.add_argument("--nodes", type=int, default=None, help="nodes in the mesh (three to five, by seed)")
    parser.add_argument("--directory", type=Path, default=None, help="where meshes live (the system's own for that)")
    asked = parser.parse_args(arguments)
    found = 0
    for seed in range(asked.seed, asked.seed + asked.hunts):
        directory = Path(tempfile.mkdtemp(prefix=f"hunt-{seed}-", dir=asked.directory))
        report = hunt(directory, seed=seed, seconds=asked.seconds, nodes=asked.nodes)
        found += bool(report.violations)
        _say(
            f"seed {seed}: {report.tasks} tasks, {report.runs} runs, quiet after {report.quiet_s:.1f} s, "
            f"{len(report.violations)} violations"
        )
        if report.violations:
            _say(f"  kept in {directory}")
            for line in [*report.faults, *map(str, report.violations)]:
                _say(f"  {line}")
        else:
            shutil.rmtree(directory)
    return 1 if found else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

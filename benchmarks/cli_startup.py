"""How long `accunet --help` takes, against an interpreter that does nothing.

The runs of both alternate, so that whatever else the machine is doing falls on both alike; medians are compared.

    python benchmarks/cli_startup.py --runs 20
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

BASELINE = "python -c pass"
COMMANDS = {
    BASELINE: [sys.executable, "-c", "pass"],
    "accunet --help": [sys.executable, "-c", "from accunet_monai.cli import app; app()", "--help"],
}


def main() -> None:
    """Prints one row per command: median, fastest and slowest run in milliseconds, ratio of medians to the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs of each command (default: 20)")
    milliseconds = measure(parser.parse_args().runs)
    table = Table("command", "runs", "median ms", "fastest", "slowest", "ratio", title="Start-up time")
    baseline = statistics.median(milliseconds[BASELINE])
    for name, times in milliseconds.items():
        median = statistics.median(times)
        figures = (f"{value:.0f}" for value in (median, min(times), max(times)))
        table.add_row(name, str(len(times)), *figures, f"{median / baseline:.1f}")
    Console().print(table)


def measure(runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run of each command, the commands in turn. A first run of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(runs + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main()

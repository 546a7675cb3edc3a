"""What a user waits for before anything happens: whole processes, started in turn with a bare interpreter."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.timing import Times, in_turns


def process(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return 1e3 * (time.perf_counter() - started)


def measure(rounds: int = 11) -> Times:
    """Milliseconds of ``python -c pass``, ``import tutelage`` and ``tutelage --help``."""
    return in_turns(
        {
            "python": lambda: process(sys.executable, "-c", "pass"),
            "import": lambda: process(sys.executable, "-c", "import tutelage"),
            "help": lambda: process(str(Path(sys.executable).with_name("tutelage")), "--help"),
        },
        rounds,
    )

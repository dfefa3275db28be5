"""How long a worker takes to start, and how much of that reused workers save."""

import statistics
import subprocess
import sys
import time

IMPORTS = {"python": "pass", "numpy and pandas": "import numpy, pandas", "torch": "import torch",
           "a worker": "import kdstudy.trainables.any_loop"}


def starting(rounds: int) -> dict[str, float]:
    """Seconds until a new process has imported something, the median over rounds."""
    return {name: statistics.median(_seconds(code) for _ in range(rounds)) for name, code in IMPORTS.items()}


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began

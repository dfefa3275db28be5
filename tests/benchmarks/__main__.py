"""What the parts of a study cost, each beside what it is compared with, timed in turns.

    python tests/benchmarks --minute                     # the ratios alone, as the gate does
    python tests/benchmarks --out results.json           # all of it: about ten minutes, on a GPU if there is one

The figures are ratios of times within one run; a JSON file says on which hardware.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the tests

import torch

from benchmarks import starting, training
from benchmarks.timing import Ratio, hardware
from kdstudy.trainables.device import default_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minute", action="store_true", help="the most telling ratios, in about a minute")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--epochs", type=int, default=100, help="of each trial of the searches that are compared")
    options = parser.parse_args()
    device, began = default_device(), time.monotonic()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as the trials have
    found = small(device) if options.minute else everything(device, options.epochs)
    content = {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware(device),
               "seconds": round(time.monotonic() - began), **found}
    show(content)
    if options.out:
        options.out.write_text(json.dumps(plain(content), indent=2) + "\n")


def small(device: torch.device) -> dict[str, Any]:
    return {"epochs": {size.preset: training.epochs(size, device, 20) for size in training.SIZES}}


def everything(device: torch.device, epochs: int) -> dict[str, Any]:
    from benchmarks import peer, sharing

    found: dict[str, Any] = {
        "epochs": {size.preset: training.epochs(size, device, 90) for size in training.SIZES},
        "precision and memory format": {size.preset: training.variants(size, device, 45) for size in training.SIZES},
        "start, seconds": starting.starting(3)}
    if device.type == "cuda":
        found["trials on one GPU, images per second"] = {
            size.preset: sharing.sharing(size, 20) for size in training.SIZES}
    found["search, ms of wall time per epoch"] = peer.peer(training.SIZES[0], epochs, slots=2)
    return found


def show(content: dict[str, Any], indent: str = "") -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif isinstance(value, Ratio):
            print(f"{indent}{name:24} {value} times {next(other for other in value.seconds if other != name)}")
        else:
            print(f"{indent}{name:24} {f'{value:.4g}' if isinstance(value, float) else value}")


def plain(content: Any) -> Any:
    """The same as JSON values."""
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    return plain(content.as_dict()) if isinstance(content, Ratio) else (
        float(f"{content:.4g}") if isinstance(content, float) else content)


if __name__ == "__main__":
    main()

"""What the parts of a study cost, each beside what it is compared with, timed in turns.

    python tests/benchmarks --minute                     # the ratios alone, as the gate does
    python tests/benchmarks --out results.json           # all of it: about ten minutes, on a GPU if there is one

The figures are ratios of times within one run; a JSON file says on which hardware.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
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
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))  # of workers
    device, began = default_device(), time.monotonic()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as the trials have
    parts = small(device) if options.minute else everything(device, options.epochs)
    content: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware(device)}
    show(content)
    for name, measure in parts.items():
        content[name] = measure()
        show({name: content[name]})
        content["seconds"] = round(time.monotonic() - began)
        if options.out:
            options.out.write_text(json.dumps(plain(content), indent=2) + "\n")


Parts = dict[str, Callable[[], dict[str, Any]]]


def small(device: torch.device) -> Parts:
    return {"epochs": lambda: {size.preset: training.epochs(size, device, 20) for size in training.SIZES}}


def everything(device: torch.device, epochs: int) -> Parts:
    from benchmarks import peer, sharing

    parts: Parts = {
        "epochs": lambda: {size.preset: training.epochs(size, device, 90) for size in training.SIZES},
        "precision and memory format": lambda: {
            size.preset: training.variants(size, device, 45) for size in training.SIZES},
        "start, seconds": lambda: starting.starting(3)}
    if device.type == "cuda":
        parts["trials on one GPU, images per second"] = lambda: {
            size.preset: sharing.sharing(size, 20) for size in training.SIZES}
    return parts | {"search, ms of wall time per epoch": lambda: peer.peer(training.SIZES[0], epochs, slots=2)}


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

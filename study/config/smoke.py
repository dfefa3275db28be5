"""TODO docstring."""

from typing import Any

SMOKE_PIXELS = 1.2e6  # per split: what keeps a first look at 224 pixels within minutes on a CPU
SMOKE_IMAGES = 12  # at least: few classes, each with a few images


def _share(amount: float | int | None) -> float | None:
    """Where the data shrink, a share of them still means something, a number does not: then it is half."""
    return 0.5 if isinstance(amount, int) else amount


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        merged[key] = _merge(merged[key], change) if isinstance(change, dict) else change
    return merged

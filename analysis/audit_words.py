"""The audit of the usual protocol in words: its table and what it finds. For its numbers see `kdstudy.analysis.audit`.

results.json, results.md and the README's blocks hold these sentences, so a change of a word changes committed files.
"""

from __future__ import annotations

from typing import Any

from kdstudy.analysis.audit import PROTOCOLS
from kdstudy.analysis.number_text import gain_cell, show_bounds, show_points

COLUMNS = ("protocol", "baseline", "distilled", "epoch", "gain [95 %]", "change [95 %]", "interval over")


def audit_cells(audit: dict[str, Any]) -> list[list[str]]:
    """The rows of the table as text, in the order of COLUMNS."""
    named = {"published": _at("default", audit["baseline_batch_size"]), "default": _at("default", audit["batch_size"]),
             "tuned": "tuned"}
    return [[f"{place}. {protocol.name}", named[protocol.baseline], named[protocol.distilled],
             "best test epoch" if protocol.best_epoch else "last", gain_cell(row["gain"]), gain_cell(row["change"]),
             row["gain"]["over"]]
            for place, (protocol, row) in enumerate(zip(PROTOCOLS, audit["protocols"], strict=True), 1)]


def _at(configuration: str, batch_size: int | None) -> str:
    return f"{configuration}, batch {batch_size}" if batch_size else configuration


def statements(audit: dict[str, Any]) -> list[str]:
    """What the usual protocol reports beside the study's own comparison on the same seeds, and how often it reports a
    gain where there is none: two sentences each at most."""
    return [_overstated(audit), _false(audit["false_reports"])]


def _overstated(audit: dict[str, Any]) -> str:
    first, last = (audit["protocols"][place]["gain"] for place in (0, -1))
    batches = f", batch {audit['baseline_batch_size']} against {audit['batch_size']}" if audit["batch_size"] else ""
    difference, more = audit["overstated"], audit["overstated"]["mean"] >= 0
    low, high = sorted(difference[end] if more else -difference[end] for end in ("low", "high"))
    zero = ", which includes zero" if low <= 0 <= high else ""
    return (f"Measured as is usual (best test epoch, nothing tuned{batches}), distillation gains "
            f"{show_points(first['mean'])} points (95 % interval {show_bounds(first)}) on {audit['seeds']} seeds; with "
            f"equal batches, the last epoch and both arms tuned, {show_points(last['mean'])} ({show_bounds(last)}). "
            f"The usual protocol reports {abs(difference['mean']):.2f} points {'more' if more else 'less'} "
            f"({show_points(low)} to {show_points(high)}{zero}).")


def _false(found: dict[str, Any]) -> str:
    other, same = found["other_batch"], found["same_batch"]
    return (f"Without any distillation, the usual protocol reports a gain of {found['gain']:g} points or more in "
            f"{_percent(other['rate'])} % of the pairs of runs (95 % interval {_range(other)}); with equal batches, in "
            f"{_percent(same['rate'])} % ({_range(same)}).")


def _range(found: dict[str, Any]) -> str:
    return f"{_percent(found['low'])} to {_percent(found['high'])} %"


def _percent(share: float) -> str:
    """12; 0.3; 0: whole percents, below 1 % one more digit."""
    percent = 100 * share
    return f"{percent:.1f}" if 0 < percent < 0.95 else f"{percent:.0f}"

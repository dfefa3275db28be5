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
    batches = {"published": f"default, batch {audit['baseline_batch_size']}", "default": "default", "tuned": "tuned"}
    return [[f"{place}. {protocol.name}", batches[protocol.baseline], batches[protocol.distilled],
             "best test epoch" if protocol.best_epoch else "last", gain_cell(row["gain"]), gain_cell(row["change"]),
             row["gain"]["over"]]
            for place, (protocol, row) in enumerate(zip(PROTOCOLS, audit["protocols"], strict=True), 1)]


def statement(audit: dict[str, Any]) -> str:
    """What the usual protocol reports, what the study's own comparison finds on the same seeds, and how often the
    former reports a gain where there is none."""
    return f"{_overstated(audit)} {_false(audit)}"


def _overstated(audit: dict[str, Any]) -> str:
    first, last = (audit["protocols"][place]["gain"] for place in (0, -1))
    batches = (f", the baseline at batch {audit['baseline_batch_size']} and the distillation at {audit['batch_size']}"
               if audit["batch_size"] else "")
    difference, more = audit["overstated"], audit["overstated"]["mean"] >= 0
    ends = [difference[end] if more else -difference[end] for end in ("low", "high")]
    low, high = min(ends), max(ends)
    zero = ", which includes zero" if low <= 0 <= high else ""
    return (f"Measured as is usual (one run each, best test epoch, nothing tuned{batches}), distillation gains "
            f"{show_points(first['mean'])} points on average over {audit['seeds']} seeds (95 % interval "
            f"{show_bounds(first)}). With equal batches, the last epoch and both arms tuned, the same seeds give "
            f"{show_points(last['mean'])} ({show_bounds(last)}): the usual protocol reports "
            f"{abs(difference['mean']):.2f} points {'more' if more else 'less'} "
            f"({show_points(low)} to {show_points(high)}{zero}).")


def _false(audit: dict[str, Any]) -> str:
    found = audit["false_reports"]
    other, same = found["other_batch"], found["same_batch"]
    return (f"Without any distillation, it would report a gain of {found['gain']:g} points or more in {_rate(other)} "
            f"of the pairs of runs, and in {_rate(same)} with equal batches.")


def _rate(found: dict[str, Any]) -> str:
    return f"{_percent(found['rate'])} % (95 % interval {_percent(found['low'])} to {_percent(found['high'])} %)"


def _percent(share: float) -> str:
    """12; 0.3; 0: whole percents, below 1 % one more digit."""
    percent = 100 * share
    return f"{percent:.1f}" if 0 < percent < 0.95 else f"{percent:.0f}"

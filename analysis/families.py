"""Which comparisons are made together, so that their intervals hold together.

One comparison is the study's answer, chosen in the settings before anything runs: the distilled row that
`confirm.primary` names over the tuned baseline. It has a 95 % interval of its own. The others form two families, each
right as a whole with 95 %: the other rows of the results table over the tuned baseline, and the comparisons that say
where the gain comes from. Where the test images are looked at more than once, these shares are of this look's level:
see `kdstudy.analysis.looks`.
"""

from __future__ import annotations

from typing import Any

from kdstudy.analysis.gain import gain
from kdstudy.analysis.looks import present_look
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.analysis.teachers import crossed_gain

ONLY = "only "  # begins the name of the configuration that leaves loss, temperature and alpha at their defaults
Key = tuple[str, str]  # arm and configuration
Runs = tuple[Any, ...]


def compare(study: StudyFiles, first: Key, second: Key) -> dict[str, Any] | None:
    """The gain of one confirmed row over another, with an interval as wide as its family needs: see `gain`.

    None where both are the same runs, and with one seed. A comparison of the same runs as the primary one is that one.
    The primary one is over all teachers, where there are several: see `kdstudy.analysis.teachers`.
    """
    runs = {(row["arm"], row["configuration"]): runs_of(row) for row in study.confirmation["rows"]}
    pair = runs[first], runs[second]
    if pair[0] == pair[1]:
        return None
    primary, rows, reasons = _families(study, runs)
    if pair == primary and (over_teachers := crossed_gain(study)):
        return over_teachers
    size = 1 if pair == primary else len(rows if pair in rows else reasons)
    return gain(study.confirmed[first], study.confirmed[second], size, present_look(study).level)


def _families(study: StudyFiles, runs: dict[Key, Runs]) -> tuple[tuple[Runs, Runs], set, set]:
    """The primary pair of runs, those of the other rows, and those that say where the gain comes from.

    The latter: the distillation with the baseline at its default point; both at the default point; and, where there is
    such a row, the tuned distillation with the one that tunes only what the baseline tunes too."""
    baseline, default = runs["baseline", "tuned"], runs["baseline", "default"]
    primary = runs["distilled", study.primary], baseline
    rows = {(own, baseline) for own in runs.values() if own != baseline} - {primary}
    reasons = {(primary[0], default), (runs["distilled", "default"], default)}
    if only := only_row(study):
        reasons.add((runs["distilled", "tuned"], runs_of(only)))
    return primary, rows, reasons - rows - {primary}


def only_row(study: StudyFiles) -> dict[str, Any] | None:
    """The confirmed row that tunes only what both arms share."""
    return next((row for row in study.confirmation["rows"] if row["configuration"].startswith(ONLY)), None)


def runs_of(row: dict[str, Any]) -> Runs:
    """What identifies the runs behind a row: rows with the same parameters share them."""
    return row["stage"], *row["runs"]

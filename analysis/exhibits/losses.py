"""Which loss: those that the search chose from, side by side."""

from typing import Any

from kdstudy.analysis.exhibits.effects import show_estimate, show_point
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.alternatives import alternatives
from kdstudy.analysis.number_text import counted
from kdstudy.analysis.study_analysis import StudyAnalysis

COLUMNS = ("loss", "trials", "at full budget", "best trial", "best of the surface (90 % interval)", "there")


def losses(name: str, analysis: StudyAnalysis) -> Exhibit:
    found = analysis.sensitivity
    rows = found.get("losses", [])
    surface = ("a surface of its own, fitted to its own trials and the baseline’s," if "loss" in found
               else "the surface of all trials")
    return Exhibit(
        name, "Which loss?",
        "On the validation images, in the search. The best trial of a loss is one run of one seed, and the luckiest of "
        f"many: the more trials a loss has, the luckier. The dot is what {surface} predicts at its best point over "
        "fresh seeds, and its interval allows for that point being chosen as the best. Where the intervals of two "
        "losses overlap widely, the search does not show which is better. Test images are for the winner and the "
        "default point alone, so the other losses are not confirmed.",
        "No trial of the distillation has reached the full budget yet." if rows else "The study chose among no losses.",
        alternatives(rows, "loss"),
        notes=tuple(_missing(row) for row in rows if "missing" in row), nav="Losses", applies=bool(rows),
        table=(COLUMNS, *map(_row, rows)))


def _missing(row: dict[str, Any]) -> tuple[str, str]:
    return "note", f"{row['loss']} ({counted(row['trials'], 'trial')}) has no surface: {row['missing']}"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    seen, best = row["best_seen"], row.get("best")
    return (row["loss"], str(row["trials"]), str(row["full"]), "" if seen is None else f"{seen:.2f} %",
            *((show_estimate(best), show_point(best)) if best else ("", "")))

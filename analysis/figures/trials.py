"""How a trial is drawn, in all figures of the searches: which symbol, and what its hover text says."""

import html
import math
import textwrap
from typing import Any

from kdstudy.analysis.figures.style import ORIGINS, SYMBOLS, rounded, show
from kdstudy.analysis.study_files import SEARCH_STAGES, StudyFiles

STATES = {"complete": "full budget", "stopped": "stopped early: value at the stop", "running": "running: value so far",
          "failed": "failed"}
MARKERS = {"complete": "circle", "stopped": "circle-open", "running": "triangle-right-open", "failed": "x"}
MOST_OPAQUE = 30  # up to this many lines are drawn fully opaque


def trials_of(study: StudyFiles, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage's trials, with None where a trial has no value."""
    trials = study.trials[study.trials["stage"] == stage].astype(object)
    return trials.where(trials.notna(), None).to_dict("records")


def is_drawable(trial: dict[str, Any]) -> bool:
    return trial["ended"] == "failed" or trial["last_validation_accuracy"] is not None


def leader(study: StudyFiles, stage: str) -> tuple[int | None, str]:
    """The number of the stage's winner, or of its best full-budget trial so far, and its name in a legend."""
    done = study.choice(stage) if stage in SEARCH_STAGES else study.done(stage)
    if done:
        number = done.get("winner", done.get("trial"))
        return number, f"winner: trial {number}"  # the winner may have no trial in the search, and is not drawn then
    complete = [trial for trial in trials_of(study, stage)
                if trial["ended"] == "complete" and trial["last_validation_accuracy"] is not None]
    best = max(complete, key=lambda trial: (trial["last_validation_accuracy"], -trial["trial"]), default=None)
    return (best["trial"], f"leader so far: trial {best['trial']}") if best else (None, "")


def about(study: StudyFiles, trial: dict[str, Any]) -> str:
    """Hover text: the trial's number, the origin of its parameters, and their values."""
    parameters = ", ".join(f"{SYMBOLS.get(name, name)} {show(trial[name])}" for name in study.parameter_names
                           if trial[name] is not None)
    origin = ORIGINS.get(trial["origin"])
    return f"<b>trial {trial['trial']}</b>{f' ({origin})' if origin else ''}<br>{parameters}"


def fate(trial: dict[str, Any]) -> str:
    """Hover text: how far the trial came and how it ended."""
    accuracy = trial["last_validation_accuracy"]
    value = "no accuracy reported" if accuracy is None else f"{100 * accuracy:.2f} % at epoch {trial['epochs']}"
    reason = html.escape(textwrap.shorten(trial["reason"] or "", 70, placeholder=" …"))
    return value + {"complete": "", "stopped": ", stopped early", "running": ", running",
                    "failed": f"<br>failed: {reason}"}[trial["ended"]]


def thinned(opacity: float, lines: int) -> float:
    """The opacity of each of many lines: fainter the more there are, so that dense places show."""
    return rounded(opacity * min(1.0, math.sqrt(MOST_OPAQUE / max(lines, 1))))

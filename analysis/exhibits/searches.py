"""The searches: their trials, whether early stopping can be trusted, and where the time went."""

import pandas as pd

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import learning_curves as curves_figure
from kdstudy.analysis.figures.parallel import parallel_coordinates
from kdstudy.analysis.figures.rungs import rung_correlations
from kdstudy.analysis.figures.training_time import training_time
from kdstudy.analysis.figures.trial_panels import optimisation_history
from kdstudy.analysis.figures.trial_panels import slices as slices_figure
from kdstudy.analysis.sensitivity.space import unlike_losses
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import ARMS, StudyFiles


def rungs(name: str, analysis: StudyAnalysis) -> Exhibit:
    correlations, full = analysis.rung_correlations, analysis.study.description.get("epochs") or 0
    return Exhibit(
        name, "Do early epochs predict the end?",
        f"Rank correlation of {_ranked(correlations)} accuracies at each rung with those at the end (1: the same "
        "order). Early stopping decides at the rungs. Below the dashed line, a rule of thumb, the early order is a "
        "poor guide; with so few trials the value itself is rough.",
        "There are no rungs, or too few trials have passed them, to compare rankings.",
        rung_correlations(correlations, full), nav="Early stopping")


def _ranked(correlations: pd.DataFrame) -> str:
    """Whose accuracies: early stopping selects all but the protected trials."""
    if correlations["protected"].all():
        return "the protected trials’"
    return "trials’ (in an arm with few protected trials: of all that reached the rung, a selection)"


def learning_curves(name: str, analysis: StudyAnalysis, stage: str, nav: str = "") -> Exhibit:
    """The learning curves of a search, `distill` or `baseline`."""
    study = analysis.study
    return Exhibit(name, f"Learning curves: {ARMS[stage]}", _counts(study, stage) + _dotted(study),
                   f"No {ARMS[stage]} trial has reported yet.", curves_figure.learning_curves(study, stage), nav=nav)


def _counts(study: StudyFiles, stage: str) -> str:
    ended = study.trials.loc[study.trials["stage"] == stage, "ended"].value_counts()
    words = {"complete": "at the full budget", "stopped": "stopped early", "running": "running", "failed": "failed"}
    counts = ", ".join(f"{ended[state]} {text}" for state, text in words.items() if state in ended)
    return f"{ended.sum()} {'trial' if ended.sum() == 1 else 'trials'}: {counts}."


def _dotted(study: StudyFiles) -> str:
    rungs = study.description.get("rungs")
    if not rungs:
        return ""
    return (f" Dotted: the {'rung' if len(rungs) == 1 else 'rungs'}, epoch {', '.join(map(str, rungs))}, where trials "
            "behind the others may be stopped; an open circle marks a trial that was.")


def parallel(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(
        name, "Every distillation trial as a line",
        "Follow the thick lines from right to left: where they come together, the best trials agree on a parameter; "
        "where they fan out, it does not matter or is not settled. Dotted: trials stopped early, whose last accuracy "
        f"is from an earlier epoch.{_passing_by(analysis.study)}",
        "Fewer than two trials of the distillation have ended.", parallel_coordinates(analysis.study),
        parallel_coordinates(analysis.study, short=True))


def _passing_by(study: StudyFiles) -> str:
    """What a line does at a parameter that its trial lacks."""
    return " A line passes straight by a parameter that its loss does not have." if unlike_losses(study) else ""


def history(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(
        name, "What the searches found, trial by trial",
        "The last validation accuracy of each trial, in the order in which the trials were proposed. A line that still "
        "rises at the right means that more trials might find better points. Trials below the full budget are shown "
        "underneath, on their own scale, since their values do not compare.",
        "No search has a trial to show yet.",
        optimisation_history(analysis.study), optimisation_history(analysis.study, columns=1))


def slices(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(
        name, "Every trial against each parameter",
        "Each trial appears once per parameter, so the other parameters vary too. The baseline appears where it "
        "searches the same parameter.", "No trial of a searched parameter has reported yet.",
        slices_figure(analysis.study), slices_figure(analysis.study, columns=1))


def teacher(name: str, analysis: StudyAnalysis) -> Exhibit:
    study = analysis.study
    which = f"Of the teacher “{study.teacher}”, that of the study’s answer. " if study.teacher_choice else ""
    return Exhibit(name, "Learning curves: teacher", f"{which}One line per learning rate that was tried.",
                   "The teacher has not reported yet, or was given.", curves_figure.teacher_curve(study))


def budget(name: str, analysis: StudyAnalysis) -> Exhibit:
    spent = analysis.study.spent
    return Exhibit(name, "Where the time went", _time_caption(analysis.study) if len(spent) else "",
                   "No trial has reported its time yet.", training_time(spent), nav="Budget")


def _time_caption(study: StudyFiles) -> str:
    saved = study.spent.loc[study.spent["kind"] == "saved", "seconds"].sum()
    first = (f"Early stopping saved {100 * saved / study.spent['seconds'].sum():.0f} % of the training time that the "
             "same trials would have taken without it" if saved else "No trial was stopped early")
    taken = [stage for stage in study.planned if "taken_from" in (study.done(stage) or {})]
    others = f"; taken from another study: {', '.join(taken).replace('_', ' ')}" if taken else ""
    return (f"{first}{others}. Time is summed over trials that ran side by side, so it is more than the wall time; "
            "computing the teacher’s logits is not included.")

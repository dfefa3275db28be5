"""A study's results as DataFrames for a notebook, with one unit for all accuracies and the unit in every name.

The files in `results/` hold shares (trials.csv, curves.csv) and percent (classes.csv, results.json), and their columns
do not name the unit. Here a column's name ends in

    _percent   an accuracy or another share, times 100
    _points    a difference between two accuracies or their standard deviation, in percentage points
    _seconds   training time

and in none of these where it has no such unit: a count, a name, a p-value, a loss (in nats), a hyperparameter as the
study file writes it. Every function reads the study's record rather than `results/`, and also works while the study
runs; rows that are not known yet are missing. All raise ValueError where a stage's files do not fit together.
"""

from typing import Any

import pandas as pd

from kdstudy.analysis.study_analysis import StudyAnalysis

DIGITS = 10  # after the point; the rest is rounding error of the factor 100
ROW = ("arm", "configuration", "model", "parameters", "compression", "trials", "search_trial", "seeds")
MEASURED = ("test_accuracy_percent", "test_accuracy_sd_points", "best_validation_accuracy_percent", "gain_points",
            "gain_low_points", "gain_high_points", "gain_p", "gap_closed_percent")
COUNTS = dict.fromkeys(("model_parameters", "trials", "search_trial", "seeds"), "Int64")  # whole numbers, some missing


def trials(analysis: StudyAnalysis) -> pd.DataFrame:
    """A row per trial of every stage: its hyperparameters, how it ended, and its accuracies.

    Columns stage, trial, the hyperparameters, origin, protected, epochs, ended, reason,
    last_validation_accuracy_percent, best_validation_accuracy_percent, seed, label.
    """
    return _in_percent(analysis.study.trials, "last_validation_accuracy", "best_validation_accuracy")


def curves(analysis: StudyAnalysis) -> pd.DataFrame:
    """A row per report of every trial.

    Columns stage, trial, epoch, decision, train_loss, hard_loss, soft_loss, validation_accuracy_percent,
    validation_loss, agreement_percent (with the teacher's predictions), lr, images_per_second, training_seconds (since
    the trial's start); test_accuracy_percent where the study has run an audit.
    """
    frame = analysis.study.curves
    tested = [name for name in ("test_accuracy",) if name in frame]
    frame = _in_percent(frame, "validation_accuracy", "agreement", *tested)
    return frame.rename(columns={"seconds": "training_seconds"})


def results(analysis: StudyAnalysis) -> pd.DataFrame:
    """The results table, a row per confirmed configuration, after one for the teacher.

    Columns arm, configuration, model, the hyperparameters, model_parameters, compression, trials, search_trial, seeds,
    test_accuracy_percent (mean over the seeds), test_accuracy_sd_points, best_validation_accuracy_percent; then
    over the tuned baseline gain_points, its 95 % interval gain_low_points to gain_high_points, gain_p, and
    gap_closed_percent, the gain's part of the teacher's lead.
    """
    names = analysis.study.parameter_names
    rows = [{**{name: row.get(name) for name in (*ROW, *names)}, **_measured(row)} for row in analysis.outcome["rows"]]
    frame = pd.DataFrame(rows, columns=[*ROW[:3], *names, *ROW[3:], *MEASURED])
    return frame.rename(columns={"parameters": "model_parameters"}).astype(COUNTS)


def classes(analysis: StudyAnalysis) -> pd.DataFrame:
    """A row per class, once both arms are confirmed.

    Columns name, images, teacher_accuracy_percent, baseline_accuracy_percent, distilled_accuracy_percent, gain_points,
    its 95 % interval gain_low_points to gain_high_points, p, p_adjusted (for the number of classes).
    """
    arms = {arm: f"{arm}_accuracy_percent" for arm in ("teacher", "baseline", "distilled")}
    return analysis.classes.rename(columns=arms | {
        "gain": "gain_points", "low": "gain_low_points", "high": "gain_high_points"})


def prices(analysis: StudyAnalysis) -> pd.DataFrame:
    """The price of leaving each searched parameter at its default while the others are tuned, in validation accuracy.

    Columns parameter, default, price_points, its 90 % interval price_low_points to price_high_points. No row while too
    few trials have reported.
    """
    rows = analysis.sensitivity.get("prices", [])
    return pd.DataFrame(rows, columns=["parameter", "default", "price", "low", "high"]).rename(columns={
        "price": "price_points", "low": "price_low_points", "high": "price_high_points"})


def controls(analysis: StudyAnalysis) -> pd.DataFrame:
    """A row per control that is done, see `[controls]` of the study file.

    Columns control, the hyperparameters of its runs, epochs, seeds, test_accuracy_percent (mean over the seeds),
    test_accuracy_sd_points; then of the distilled student over the control gain_points, its 95 % interval
    gain_low_points to gain_high_points and gain_p, both by Holm's procedure over the controls.
    """
    rows = _confirmed(analysis, "controls", [])
    own = {"control", "epochs", "seeds", "test_mean", "test_sd", "gain", "of_loss"}
    names = list(dict.fromkeys(name for row in rows for name in row if name not in own))
    frame = pd.DataFrame([{
        "control": row["control"], **{name: row.get(name) for name in names}, "epochs": row["epochs"],
        "seeds": row["seeds"], "test_accuracy_percent": row["test_mean"], "test_accuracy_sd_points": row["test_sd"],
        **_interval("gain", row["gain"])} for row in rows])
    return frame if rows else pd.DataFrame(columns=["control"])


def audit(analysis: StudyAnalysis) -> pd.DataFrame:
    """A row per protocol of the audit, from the usual one to kdstudy's, see `[audit]` of the study file.

    Columns protocol; the gain it reports, gain_points, and its 95 % interval gain_low_points to gain_high_points;
    change_points from the protocol before it, with change_low_points and change_high_points.
    """
    rows = (_confirmed(analysis, "audit", None) or {"protocols": []})["protocols"]
    frame = pd.DataFrame([{"protocol": row["protocol"], **_interval("gain", row["gain"]),
                           **_interval("change", row["change"])} for row in rows])
    return frame.drop(columns=["gain_p", "change_p"]) if rows else pd.DataFrame(columns=["protocol"])


def _confirmed(analysis: StudyAnalysis, name: str, default: Any) -> Any:
    """A part of the outcome, which there is once the confirmation is done."""
    return analysis.outcome.get(name, default) if analysis.study.confirmation is not None else default


def _interval(name: str, found: dict[str, Any] | None) -> dict[str, float | None]:
    """The columns of a difference in points with its interval; None where there is none."""
    known = found or {}
    return {f"{name}_points": known.get("mean"), f"{name}_low_points": known.get("low"),
            f"{name}_high_points": known.get("high"), f"{name}_p": known.get("p")}


def series(content: dict[str, Any]) -> pd.DataFrame:
    """A row per study of a series. content: of series.json.

    Columns value (of the setting that varies), amount (epochs or labelled images), seeds, baseline_accuracy_percent,
    distilled_accuracy_percent and teacher_accuracy_percent (means over the seeds), gain_points over the tuned baseline,
    its 95 % interval gain_low_points to gain_high_points, gain_p. What is not confirmed yet is missing.
    """
    rows = []
    for member in content["members"]:
        means = {f"{arm}_accuracy_percent": row["test_mean"] if (row := member[arm]) else None
                 for arm in ("baseline", "distilled", "teacher")}
        rows.append({"value": member["value"], "amount": member["amount"],
                     "seeds": member["distilled"]["seeds"] if member["distilled"] else None, **means,
                     **_interval("gain", member["gain"])})
    return pd.DataFrame(rows).astype({"seeds": "Int64"}) if rows else pd.DataFrame()


def _in_percent(frame: pd.DataFrame, *shares: str) -> pd.DataFrame:
    """A copy in which columns of shares are percent, and named so."""
    percent = {name: (100 * frame[name].astype(float)).round(DIGITS) for name in shares}
    return frame.assign(**percent).rename(columns={name: f"{name}_percent" for name in shares})


def _measured(row: dict[str, Any]) -> dict[str, float | None]:
    """The columns MEASURED of a row of the results table."""
    closed = None if row["gap_closed"] is None else 100 * row["gap_closed"]
    return {"test_accuracy_percent": row["test_mean"], "test_accuracy_sd_points": row["test_sd"],
            "best_validation_accuracy_percent": row["best_validation"], **_interval("gain", row["gain"]),
            "gap_closed_percent": closed}

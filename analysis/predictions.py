"""The confirmed students' test predictions: per class, beside the teacher's, and how far to trust their confidence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import special, stats

from kdstudy.analysis.significance import crossed_interval
from kdstudy.analysis.stage_names import stage_for
from kdstudy.analysis.study_files import StudyFiles, read_columns

ARMS = ("baseline", "distilled")
CLASS_COLUMNS = ["name", "images", "teacher", "baseline", "distilled", "gain", "low", "high", "p", "p_adjusted"]
AGREEMENT_COLUMNS = ["arm", "teacher", "images", "agreement", "agreement_sd", "accuracy", "accuracy_sd"]
BIN_COLUMNS = ["arm", "low", "high", "count", "confidence", "accuracy"]
ERROR_COLUMNS = ["arm", "runs", "error", "error_sd", "overconfidence", "overconfidence_sd"]
NOTEWORTHY_CALIBRATION = 2.0  # percentage points between the arms' calibration errors


@dataclass(frozen=True)
class RunPredictions:
    """Predicted classes of an arm's runs on the same test images."""

    labels: np.ndarray  # (N,)
    classes: np.ndarray  # (runs, N)

    @property
    def correct(self) -> np.ndarray:
        """(runs, N) bool."""
        return self.classes == self.labels


def per_class(study: StudyFiles) -> pd.DataFrame:
    """A row per class: the tuned arms' accuracies, and the gain with its interval, on the class's images. classes.csv.

    teacher, baseline, distilled: accuracies in percent, means over seeds; teacher is NaN where it is not known.
    gain, low, high: the gain over the baseline and its 95 % interval, in percentage points.
    p_adjusted: the p-value after Benjamini and Hochberg (1995) over the classes: of those below 0.05, 5 % are expected
        to be false.

    With one seed, gain, low, high and p are NaN; low, high and p too for a class with fewer than two test images, or
    whose difference never varies.

    Empty while the study is not confirmed, and where its runs were not tested on the same images.
    """
    predictions, classes = _tuned(study), (study.description.get("data") or {}).get("classes")
    if not classes or predictions is None:
        return pd.DataFrame(columns=CLASS_COLUMNS)
    labels = predictions["baseline"].labels
    teacher = _teacher_correct(study, labels)
    rows = [{"name": name, **_class_row(predictions, teacher, labels == index)} for index, name in enumerate(classes)]
    table = pd.DataFrame(rows, columns=CLASS_COLUMNS)
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_adjusted"] = stats.false_discovery_control(table.loc[tested, "p"])
    return table


def _class_row(predictions: dict[str, RunPredictions], teacher: np.ndarray | None,
               mine: np.ndarray) -> dict[str, Any]:
    baseline, distilled = (100.0 * predictions[arm].correct[:, mine] for arm in ARMS)
    row = {
        "images": int(mine.sum()), "teacher": np.nan if teacher is None else _mean(100.0 * teacher[mine]),
        "baseline": _mean(baseline), "distilled": _mean(distilled), "gain": np.nan, "low": np.nan, "high": np.nan,
        "p": np.nan, "p_adjusted": np.nan,
    }
    differences = distilled - baseline
    if len(differences) > 1:
        row["gain"] = _mean(differences)
        if mine.sum() > 1 and np.ptp(differences) > 0:  # without any variation there is no variance to estimate
            interval = crossed_interval(differences, unit=100.0)
            row |= {"low": interval.low, "high": interval.high, "p": interval.p}
    return row


def teacher_agreement(study: StudyFiles) -> pd.DataFrame:
    """How often the tuned students predict the teacher's class, where the teacher is right and where it is wrong.

    A row per arm and per `teacher` ("right", "wrong"): images, their number; agreement, the share of them on which the
    student predicts the teacher's class; accuracy, the share that the student gets right; both in percent, means over
    seeds with standard deviations (NaN with one seed). Where the teacher is right the two are equal. A student that
    imitates the teacher's mistakes agrees more than the baseline where the teacher is wrong.

    Empty while the study is not confirmed, and where the teacher has no predictions for the same images.
    """
    predictions, teacher = _tuned(study), study.teacher_predictions()
    if predictions is None or teacher is None or _teacher_correct(study, predictions["baseline"].labels) is None:
        return pd.DataFrame(columns=AGREEMENT_COLUMNS)
    predicted = teacher["prediction"].to_numpy()
    right = predicted == predictions["baseline"].labels
    rows = []
    for arm in ARMS:
        for name, chosen in (("right", right), ("wrong", ~right)):
            agreement, accuracy = ([_mean(100.0 * run[chosen]) for run in shares]
                                   for shares in (predictions[arm].classes == predicted, predictions[arm].correct))
            rows.append((arm, name, int(chosen.sum()), *_mean_and_sd(agreement), *_mean_and_sd(accuracy)))
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


@dataclass(frozen=True)
class Calibration:
    """Reliability per bin of the confidence, and the calibration error per arm: teacher, baseline, distilled.

    bins: arm, low and high (bounds of the confidence, percent), count, mean confidence and accuracy (percent, NaN in an
        empty bin), the runs of an arm pooled.
    errors: arm, runs, error (expected calibration error) and overconfidence (mean confidence less accuracy), both in
        points as mean and standard deviation over runs (NaN with one).
    """

    bins: pd.DataFrame
    errors: pd.DataFrame


def calibration(study: StudyFiles, bins: int = 15) -> Calibration | None:
    """Whether predictions made with 80 % confidence are right in 80 % of the cases, in `bins` bins of equal width.

    The confidence is the probability of the predicted class at temperature 1. The expected calibration error is
    sum_b count_b / N |accuracy_b - confidence_b| (Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
    networks", ICML 2017, with 15 bins). By chance it is above zero even for a calibrated model, more so with fewer
    images, but equally so for arms tested on the same images.

    None while the study is not confirmed, and where no arm's files hold confidences; a model without them is left out.
    """
    files = _confidence_files(study)
    found = {arm: runs for arm, paths in files.items() if (runs := _confidences(paths))}
    if not any(arm in found for arm in ARMS):
        return None
    reliability, errors = [], []
    for arm, runs in found.items():
        pooled = [np.concatenate(part) for part in zip(*runs, strict=True)]
        reliability.append(_reliability(*pooled, bins).assign(arm=arm))
        error = [calibration_error(*run, bins) for run in runs]
        over = [100 * float(confidence.mean() - correct.mean()) for confidence, correct in runs]
        errors.append((arm, len(runs), *_mean_and_sd(error), *_mean_and_sd(over)))
    return Calibration(pd.concat(reliability, ignore_index=True)[BIN_COLUMNS],
                       pd.DataFrame(errors, columns=ERROR_COLUMNS))


def _reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> pd.DataFrame:
    """A row per bin (low, high] of the confidence, in percent."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, correct))
    with np.errstate(invalid="ignore"):
        means = [100 * part / count for part in sums]
    return pd.DataFrame({"low": 100 * edges[:-1], "high": 100 * edges[1:], "count": count,
                         "confidence": means[0], "accuracy": means[1]})


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error, in points, of predictions with these confidences (N,), 0 to 1, of which those in
    `correct` (N,) bool are right; see `calibration`."""
    found = _reliability(confidence, correct, bins)
    gap = (found["accuracy"] - found["confidence"]).abs()
    return float((found["count"] * gap).sum() / found["count"].sum())


def likelihood_loss(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """The negative log-likelihood per image, in nats, of labels (N,) under softmax(logits / temperature), (N, classes).
    """
    scaled = logits.astype(np.float64) / temperature
    return float((special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


def _confidence_files(study: StudyFiles) -> dict[str, list[Path]]:
    """The prediction files of the teacher and of both tuned arms."""
    rows = _tuned_rows(study)
    if rows is None:
        return {}
    stage = study.stage(stage_for("teacher_logits", study.teacher))
    teacher = {"teacher": [stage / "test.parquet"]} if stage else {}
    return teacher | {arm: [study.stage(row["stage"]) / "runs" / f"{run:03d}" / "test.parquet" for run in row["runs"]]
                      for arm, row in rows.items()}


def _confidences(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per file the confidences (N,), 0 to 1, and which were right (N,) bool; empty where one file lacks confidences."""
    if not all(path.exists() and "confidence" in pq.read_schema(path).names for path in paths):
        return []
    tables = [read_columns(path, "label", "prediction", "confidence") for path in paths]
    return [(table["confidence"].to_numpy(np.float64), (table["label"] == table["prediction"]).to_numpy())
            for table in tables]


def _tuned_rows(study: StudyFiles) -> dict[str, dict[str, Any]] | None:
    """Each arm's tuned confirmed row; None while one is missing."""
    if study.confirmation is None:
        return None
    rows = {row["arm"]: row for row in study.confirmation["rows"] if row["configuration"] == "tuned"}
    return rows if set(rows) == set(ARMS) else None


def _tuned(study: StudyFiles) -> dict[str, RunPredictions] | None:
    """Both tuned arms' predictions; None where there are none, or not all for the same images."""
    rows = _tuned_rows(study)
    if rows is None:
        return None
    tables = {arm: [study.predictions(run, rows[arm]["stage"]) for run in rows[arm]["runs"]] for arm in ARMS}
    labels = [table["label"].to_numpy() for arm in ARMS for table in tables[arm]]
    if not all(np.array_equal(labels[0], other) for other in labels[1:]):
        return None
    return {arm: RunPredictions(labels[0], np.stack([table["prediction"] for table in tables[arm]])) for arm in ARMS}


def _teacher_correct(study: StudyFiles, labels: np.ndarray) -> np.ndarray | None:
    """Which of the images with these labels the teacher got right, (N,) bool; None where it was tested on others."""
    teacher = study.teacher_predictions()
    if teacher is None or not np.array_equal(teacher["label"], labels):
        return None
    return (teacher["prediction"] == teacher["label"]).to_numpy()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _mean_and_sd(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan

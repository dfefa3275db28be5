"""A study folder as tidy DataFrames. Accuracies are shares, 0 to 1, as in the record.

Needs the folder alone: it may have been moved, may still be written to, and may lack stages. For the same tables in
percent, with units in the column names, see `kdstudy.analysis.frames`.
"""

import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from kdstudy.analysis.records import discarded, read_events, settled, stops_of, virtual_order
from kdstudy.analysis.stage_names import (
    CONFIRM_STAGES,
    EARLY_STAGES,
    FINALIST_STAGES,
    MAIN_TEACHER,
    TRIAL_STAGES,
    in_order,
    kind_of,
    stage_for,
)

SEARCH_STAGES = ("baseline", "distill")
ARMS = {"baseline": "baseline", "distill": "distillation"}  # each search stage, and its name in a sentence
SEARCH_OF = {"baseline": "baseline", "distilled": "distill"}  # a confirmed row's arm, and the search behind it
EXPORT_KEY_FILE = "kdstudy.json"
ENDINGS = {"stop": "stopped", "complete": "complete", "failed": "failed"}
TRIAL_COLUMNS = ["stage", "trial", "origin", "protected", "epochs", "ended", "reason", "last_validation_accuracy",
                 "best_validation_accuracy", "seed", "label"]


NEARLY_EQUAL = 1.5  # classes are, while the commonest is no more frequent than this many times its equal share


@dataclass(frozen=True)
class StudyFiles:
    """A study folder. Each file is read once, when it is first needed."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings, as study.toml has them. Raises FileNotFoundError, and ValueError where it is not TOML."""
        return tomllib.loads((self.folder / "study.toml").read_text(encoding="utf-8"))

    @cached_property
    def description(self) -> dict[str, Any]:
        """stages.json: name, data (sizes, classes), epochs, rungs, and the folder of each stage."""
        return read_json(self.folder / "stages.json") or {"name": self.folder.name, "stages": {}, "rungs": []}

    def stage(self, name: str) -> Path | None:
        """The folder of a stage; None while the stage has none."""
        folder = self.description["stages"].get(name)
        return self.folder / folder if folder and (self.folder / folder).is_dir() else None

    def done(self, name: str) -> dict[str, Any] | None:
        """The content of a stage's done-mark; None while the stage is not done."""
        stage = self.stage(name)
        return read_json(stage / "done.json") if stage else None

    @property
    def planned(self) -> list[str]:
        """The stages of this study in the order in which they run, done or not."""
        if wanted := self.description.get("wanted"):
            return in_order(wanted)
        finalists = self.config.get("finalists", {}).get("configurations", 0)  # a study of an earlier version
        return [stage for stage in EARLY_STAGES if finalists or stage not in FINALIST_STAGES]

    def choice(self, arm: str) -> dict[str, Any] | None:
        """The done-mark that names an arm's winner: that of the finalists if the study has any, else the search's."""
        finalists = FINALIST_STAGES[SEARCH_STAGES.index(arm)]
        return self.done(arm if finalists not in self.planned or self.done(arm) is None else finalists)

    @cached_property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The events of each stage's record that count; see `settled`. A half-written last line is left out."""
        return {name: settled(events) for name, events in self._all_events.items()}

    @cached_property
    def _all_events(self) -> dict[str, list[dict[str, Any]]]:
        return {name: read_events(stage / "record.jsonl") for name in in_order(self.description["stages"])
                if kind_of(name) in TRIAL_STAGES and (stage := self.stage(name))}

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per report: stage, trial, epoch, decision and the metrics. This is curves.csv.

        Units: validation_accuracy and agreement (with the teacher's predictions) are shares, 0 to 1. The losses are
        means per image; soft_loss is that of the trial's loss, such as T^2 KL(teacher || student) in nats, hard_loss
        the cross-entropy (with train.label_smoothing, if that is set), train_loss the two weighted by alpha. lr is the
        learning rate after the epoch's last step, before layer_decay and head_lr. seconds is the trial's training time
        up to this report. test_accuracy, a share too, is there where the study has run an audit, whose runs are tested
        after every epoch.
        """
        rows = [
            {"stage": stage, "trial": event["trial"], "epoch": event["epoch"], "decision": event["decision"],
             **event["metrics"]}
            for stage, events in self.events.items() for event in virtual_order(events)
        ]
        columns = ["stage", "trial", "epoch", "decision", "train_loss", "hard_loss", "soft_loss",
                   "validation_accuracy", "validation_loss", "agreement", "lr", "images_per_second", "seconds"]
        columns += ["test_accuracy"] if any("test_accuracy" in row for row in rows) else []
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def parameter_names(self) -> list[str]:
        """The hyperparameters of any trial: teacher, loss, temperature, alpha and lr first, the others as they first
        appear."""
        names: dict[str, None] = {}
        for event in self._trial_events():
            names.update(dict.fromkeys(event[1]["parameters"]))
        first = [name for name in ("teacher", "loss", "temperature", "alpha", "lr") if name in names]
        return first + [name for name in names if name not in first]

    @property
    def of_distillation(self) -> set[str]:
        """The hyperparameters that the baseline does not have, which are those of [default] but lr."""
        return {"teacher", "loss", "temperature", "alpha", *self.config.get("default", {})} - {"lr"}

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial: stage, trial, parameters, epochs run, how and why it ended, accuracies. This is trials.csv.

        Units: last_validation_accuracy and best_validation_accuracy are shares, 0 to 1; alpha, warmup and
        label_smoothing are shares too (of the loss, of the updates, and of the target), drop_path and dropout
        probabilities; warmup_epochs and freeze are in epochs. The other hyperparameters have no unit. A parameter that
        a trial's loss does not have is missing.
        """
        rows = [self._trial_row(stage, event) for stage, event in self._trial_events()]
        return pd.DataFrame(rows, columns=[*TRIAL_COLUMNS[:2], *self.parameter_names, *TRIAL_COLUMNS[2:]])

    def last_accuracy(self, stage: str, trial: int | None) -> float | None:
        """The last validation accuracy, 0 to 1, of a trial that reached the full budget; None for any other."""
        rows = self.trials[(self.trials["stage"] == stage) & (self.trials["trial"] == trial)]
        return rows["last_validation_accuracy"].iloc[0] if (rows["ended"] == "complete").any() else None

    @cached_property
    def spent(self) -> pd.DataFrame:
        """Where the training time went: stage, kind, trials, epochs, seconds (of training, summed over trials).

        `kind` says how the trials ended; `saved` estimates the time of the epochs that early stopping skipped;
        `discarded` is what stopped trials trained on while the decision on them waited for other trials.
        """
        rows = []
        last = self.curves.dropna(subset=["seconds"]).drop_duplicates(["stage", "trial"], keep="last")
        trials = self.trials.merge(last[["stage", "trial", "seconds"]], on=["stage", "trial"])
        full = self.description.get("epochs") or 0
        for (stage, ended), group in trials.groupby(["stage", "ended"], sort=False):
            rows.append((stage, ended, len(group), group["epochs"].sum(), group["seconds"].sum()))
            if ended == "stopped":
                missing = full - group["epochs"]
                rows.append((stage, "saved", len(group), missing.sum(),
                             (missing * group["seconds"] / group["epochs"]).sum()))
        rows += [row for stage, events in self._all_events.items() if (row := _discarded_row(stage, events))]
        return pd.DataFrame(rows, columns=["stage", "kind", "trials", "epochs", "seconds"])

    def _trial_events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(stage, event) for stage, events in self.events.items()
                for event in events if event["event"] == "trial"]

    @cached_property
    def _events_of_trials(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The events of each (stage, trial), in order."""
        own: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for stage, events in self.events.items():
            for event in events:
                if "trial" in event:
                    own.setdefault((stage, event["trial"]), []).append(event)
        return own

    def _trial_row(self, stage: str, event: dict[str, Any]) -> dict[str, Any]:
        number = event["trial"]
        own = self._events_of_trials[stage, number]
        retried = max((index for index, other in enumerate(own) if other["event"] == "retry"), default=0)
        own = [other for index, other in enumerate(own) if index > retried or not _is_failure(other)]
        reports = [other for other in own if other["event"] == "report"]
        failures = [other for other in own if other["event"] == "end"]
        values = [report["metrics"].get("validation_accuracy") for report in reports]
        accuracies = [value for value in values if value is not None]
        last = reports[-1] if reports else {"epoch": 0, "decision": "continue", "reason": None}
        return {
            "stage": stage, "trial": number, **event["parameters"], "origin": event["origin"],
            "protected": event["protected"], "epochs": last["epoch"],
            "ended": "failed" if failures else ENDINGS.get(last["decision"], "running"),
            "reason": failures[0]["reason"] if failures else last["reason"],
            "last_validation_accuracy": accuracies[-1] if accuracies else None,
            "best_validation_accuracy": max(accuracies, default=None),
            "seed": event["seed"], "label": event["label"],
        }

    @cached_property
    def confirmation(self) -> dict[str, Any] | None:
        """The confirmed rows of both arms, each with its `stage`, and model_parameters, the student's size.

        None while an arm is not confirmed, while the arms have different numbers of seeds, and where a search has
        chosen another winner since. While a study goes on to its next planned look, the rows are those of the last.
        """
        found = {name: done for name in CONFIRM_STAGES if (done := self.done(name))}
        rows = [{**row, "stage": name} for name, done in found.items() for row in done["rows"]]
        if any(look.get("goes_on") for look in found.get("confirm", {}).get("looks") or []):
            common = min(len(row["runs"]) for row in rows)  # one arm may be ahead
            rows = [{**row, "runs": row["runs"][:common]} for row in rows]
        if {row["arm"] for row in rows} != {"baseline", "distilled"} or len({len(row["runs"]) for row in rows}) != 1:
            return None
        if not all(self._is_still_chosen(row) for row in rows if row["configuration"] == "tuned"):
            return None
        return {"rows": rows, "model_parameters": found["confirm"]["model_parameters"]}

    def _is_still_chosen(self, row: dict[str, Any]) -> bool:
        choice = self.choice(SEARCH_OF[row["arm"]])
        if choice is None:
            return False
        return choice.get("winner", row["trial"]) == row["trial"] and (
            row["trial"] is not None or choice["parameters"] == row["parameters"])

    @property
    def primary(self) -> str:
        """The distilled configuration whose gain over the tuned baseline is the study's answer."""
        return self.config.get("confirm", {}).get("primary", "tuned")

    def confirmed_row(self, arm: str, configuration: str = "tuned") -> dict[str, Any]:
        """A confirmed row, by default that of the arm's winner. The confirmation must be done, with such a row."""
        return next(row for row in self.confirmation["rows"] if is_row(row, arm, configuration))

    def predictions(self, run: int, stage: str = "confirm") -> pd.DataFrame:
        """A confirmation run's test predictions: a row per image with label and prediction, both class indices.

        Raises ValueError where the file is missing or damaged.
        """
        return _predictions(self.stage(stage) / "runs" / f"{run:03d}" / "test.parquet")

    def correct(self, run: int, stage: str = "confirm") -> np.ndarray:
        """Which test images a confirmation run got right, (N,) bool; each file is read once."""
        if (stage, run) not in self._right:
            self._right[stage, run] = correct_in(self.predictions(run, stage))
        return self._right[stage, run]

    @cached_property
    def _right(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    @cached_property
    def confirmed(self) -> dict[tuple[str, str], np.ndarray]:
        """Which test images the runs of each (arm, configuration) got right, (seeds, N) bool each.

        The confirmation must be done.
        """
        return {(row["arm"], row["configuration"]): np.stack([self.correct(run, row["stage"]) for run in row["runs"]])
                for row in self.confirmation["rows"]}

    @cached_property
    def chance(self) -> float | None:
        """The accuracy of guessing any class or, where classes are clearly unequal, always the commonest; 0 to 1.

        The commonest of the test images, whose labels come with the confirmation or, before it, with the teacher's
        test; before either, classes count as equal. None where the classes are not known.
        """
        if not (classes := (self.description.get("data") or {}).get("classes")):
            return None
        equal, labels = 1 / len(classes), self._test_labels()
        commonest = 0.0 if labels is None else float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        return commonest if commonest > NEARLY_EQUAL * equal else equal

    def _test_labels(self) -> np.ndarray | None:
        """The label of each test image, (N,); None where nothing has been tested."""
        try:
            if self.confirmation:
                row = self.confirmation["rows"][0]
                return self.predictions(row["runs"][0], row["stage"])["label"].to_numpy()
            teacher = self.teacher_predictions()
        except ValueError:  # of a damaged file, which is reported by whoever needs the predictions themselves
            return None
        return None if teacher is None else teacher["label"].to_numpy()

    def failed_runs(self, stage: str) -> set[int]:
        """The numbers of a confirmation stage's runs that did not reach their last epoch."""
        trials = self.trials[self.trials["stage"] == stage]
        return set(trials.loc[trials["ended"] == "failed", "trial"])

    @property
    def teacher_choice(self) -> tuple[str, ...]:
        """The names of the teachers that the distillation chooses from; none where it searches no teacher."""
        return tuple(self.config.get("search", {}).get("teacher", {}).get("choice", ()))

    @property
    def teacher(self) -> str:
        """The name of the teacher: of the distilled row that is the study's answer; before that is known, of the
        search's winner, and at first of the default point."""
        if not self.teacher_choice:
            return MAIN_TEACHER
        chosen = (self.choice("distill") or {}).get("parameters", {}) if self.primary == "tuned" else {}
        if self.confirmation:
            chosen = self.confirmed_row("distilled", self.primary)["parameters"]
        return chosen.get("teacher") or self.config.get("default", {}).get("teacher", MAIN_TEACHER)

    def teacher_done(self, teacher: str | None = None) -> dict[str, Any] | None:
        """The done-mark of a teacher, of `teacher` unless another is named."""
        return self.done(stage_for("teacher", teacher or self.teacher))

    def teacher_logits(self, teacher: str) -> np.ndarray:
        """A teacher's logits for the test images, (N, classes) fp16. Raises ValueError where the file has none."""
        path = self.stage(stage_for("teacher_logits", teacher)) / "test.parquet"
        try:
            return np.stack(read_columns(path, "logits")["logits"].to_numpy()).astype(np.float16)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no logits: {error}") from None

    def teacher_predictions(self, logits: str | None = None) -> pd.DataFrame | None:
        """The teacher's test predictions: label and prediction; None where it has not been tested. logits: the stage
        that tests it; by default that of `teacher`."""
        stage = self.stage(logits or stage_for("teacher_logits", self.teacher))
        return _predictions(stage / "test.parquet") if stage and (stage / "test.parquet").exists() else None

    def teacher_correct(self, logits: str | None = None) -> np.ndarray | None:
        """Which test images the teacher got right, (N,) bool; None where it has not been tested."""
        predictions = self.teacher_predictions(logits)
        return None if predictions is None else correct_in(predictions)

    @property
    def has_current_export(self) -> bool:
        """Whether the exported student is the winner of the present confirmation."""
        exported = read_json(self.folder / "export" / EXPORT_KEY_FILE)
        return self.confirmation is not None and exported == self.export_key()

    def export_key(self, arm: str = "distilled", configuration: str = "tuned") -> dict[str, Any]:
        """What identifies an export of a confirmed row: the confirmation, the row's parameters and the exported run.

        `run` is None where every run of the row failed. The confirmation must be done.
        """
        row, index = self.confirmed_row(arm, configuration), self.exported_index(arm, configuration)
        return {"confirm": self.stage(row["stage"]).name, "parameters": row["parameters"],
                "run": None if index is None else row["runs"][index]}

    def exported_index(self, arm: str = "distilled", configuration: str = "tuned") -> int | None:
        """Which of a confirmed row's runs is exported: the first that did not fail; None if all did."""
        row = self.confirmed_row(arm, configuration)
        failed = self.failed_runs(row["stage"])
        return next((index for index, run in enumerate(row["runs"]) if run not in failed), None)


def find_row(outcome: dict[str, Any], arm: str, configuration: str) -> dict[str, Any] | None:
    """A row of the results table, of the content of results.json; None where it has none."""
    return next((row for row in outcome["rows"] if is_row(row, arm, configuration)), None)


def is_row(row: dict[str, Any], arm: str, configuration: str) -> bool:
    """Whether a row, of the confirmation or of the results table, is of this arm and configuration."""
    return (row["arm"], row["configuration"]) == (arm, configuration)


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None where there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def read_columns(path: Path, *columns: str) -> pd.DataFrame:
    """Columns of a Parquet file. Raises ValueError, one line that names the file, where any of them lacks a value."""
    try:
        table = pq.read_table(path, columns=list(columns)).to_pandas(ignore_metadata=True)
        whole = not table[list(columns)].isna().any(axis=None)
    except Exception as error:  # pyarrow, pandas and the file system raise many kinds
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not whole:
        raise ValueError(f"{path} cannot be read: it has rows without a value")
    return table


def _discarded_row(stage: str, events: list[dict[str, Any]]) -> tuple[str, str, int, int, float] | None:
    """A row of `StudyFiles.spent` about the training that stopped trials did in vain."""
    stops = stops_of(events)
    seconds = {(event["trial"], event["epoch"]): event["metrics"].get("seconds") or 0.0 for event in events
               if event["event"] == "report" and event["decision"] != "failed"}
    beyond: dict[int, int] = {}  # the last epoch of each trial that went on after its stop
    for event in discarded(events):
        if event["decision"] != "failed":
            beyond[event["trial"]] = max(event["epoch"], beyond.get(event["trial"], 0))
    if not beyond:
        return None
    epochs = sum(epoch - stops[trial] for trial, epoch in beyond.items())
    spent = sum(seconds[trial, epoch] - seconds.get((trial, stops[trial]), 0.0) for trial, epoch in beyond.items())
    return stage, "discarded", len(beyond), epochs, spent


def _is_failure(event: dict[str, Any]) -> bool:
    return event["event"] == "end" or event.get("decision") == "failed"


def _predictions(path: Path) -> pd.DataFrame:
    table = read_columns(path, "label", "prediction")
    if not all(pd.api.types.is_integer_dtype(kind) for kind in table.dtypes):
        raise ValueError(f"{path} cannot be read: its labels and predictions are not whole numbers")
    return table


def correct_in(predictions: pd.DataFrame) -> np.ndarray:
    """Which images are right in a table of predictions, (N,) bool."""
    return (predictions["label"] == predictions["prediction"]).to_numpy()

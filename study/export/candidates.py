"""Which models of a study can be exported: the teacher, each confirmed student, averages over a student's seeds, and a
search's trials."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.outcome import results
from kdstudy.analysis.stage_names import stage_for
from kdstudy.analysis.study_files import StudyFiles, correct_in, find_row
from kdstudy.config.permission import check_function
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import MAIN, check_named, section_of
from kdstudy.errors import UserError
from kdstudy.export import card
from kdstudy.trainables.files import TEST_PREDICTIONS, WEIGHTS
from kdstudy.trainables.models import Normalisation
from kdstudy.trainables.settings import ModelSettings

CHOSEN = "distilled tuned"  # the row that the study exports
BASELINE = "baseline tuned"


@dataclass(frozen=True)
class Candidate:
    """A model to export.

    weights: its file; those of several models of one kind are combined as `average` says, `weights` or `logits`.
    normalised: its mean and std per channel; None for those that its settings say. labels: of the test images, (N,).
    correct: which of them the study has recorded as right, (N,) bool; None if nothing was recorded. key: what
    identifies the export. card: the first lines of its model card. teacher: the name of the one that it learned from,
    or is.
    """

    settings: ModelSettings
    weights: tuple[Path, ...]
    labels: np.ndarray
    correct: np.ndarray | None
    key: dict[str, Any]
    card: list[str]
    normalised: Normalisation | None = None
    average: str | None = None
    teacher: str = MAIN


def student(config: StudyConfig, folder: Path, name: str = CHOSEN, seed: int | None = None) -> Candidate:
    """A confirmed student: its last epoch on one confirmation seed, by default the first with which it did not diverge.

    name: its arm and configuration, as in the results table; by default the distilled student that the study chose.
    Raises UserError if the confirmation is not done or has no such row or seed, or no weights of it.
    """
    study, confirmed = _confirmed(folder, name)
    key = confirmed["arm"], confirmed["configuration"]
    seeds = study.done(confirmed["stage"])["seeds"]
    index = study.exported_index(*key) if seed is None else _index_of(study, confirmed, seeds, seed)
    if index is None:
        raise UserError(f"{folder} has no student to export as {name!r}: it diverged on every confirmation seed")
    number = confirmed["runs"][index]
    found = study.export_key(*key) | {"run": number}
    outcome = results(study)
    is_chosen = found == study.export_key()  # rows may share their runs
    lines = card.of_student(config, outcome, find_row(outcome, *key), seeds[index], is_chosen)
    predictions = study.predictions(number, confirmed["stage"])
    return Candidate(config.student, (_weights(study, confirmed, number, name),), predictions["label"].to_numpy(),
                     correct_in(predictions), found, lines, teacher=_teacher_of(confirmed["parameters"]))


def average(config: StudyConfig, folder: Path, kind: str, name: str = CHOSEN) -> Candidate:
    """All runs of a confirmed student that did not diverge, as one model.

    kind: `weights`, the mean of their weights, for runs that start from the same trained weights; `logits`, the mean of
    their logits. Raises UserError as `student` does, and where fewer than two runs can be averaged.
    """
    study, confirmed = _confirmed(folder, name)
    if kind == "weights" and not config.student.pretrained:
        raise UserError("--average weights needs runs that start from the same trained weights (student.pretrained): "
                        "from random ones they end in places that have no sensible mean; --average logits averages "
                        "their logits")
    failed = study.failed_runs(confirmed["stage"])
    runs = [run for run in confirmed["runs"] if run not in failed]
    if len(runs) < 2:
        raise UserError(f"--average {kind} needs at least two runs; {folder} has {len(runs)} of {name!r}")
    outcome = results(study)
    key = confirmed["arm"], confirmed["configuration"]
    lines = card.of_average(config, outcome, find_row(outcome, *key), len(runs), kind,
                            is_chosen=study.export_key(*key) == study.export_key())
    labels = study.predictions(runs[0], confirmed["stage"])["label"].to_numpy()
    weights = tuple(_weights(study, confirmed, run, name) for run in runs)
    return Candidate(config.student, weights, labels, None,
                     study.export_key(*key) | {"run": None, "runs": runs, "average": kind}, lines, average=kind,
                     teacher=_teacher_of(confirmed["parameters"]))


def trial(config: StudyConfig, folder: Path, arm: str, number: int, trained: Path) -> Candidate:
    """A search's trial. arm: `baseline` or `distill`. trained: the folder where it was trained again, see
    `kdstudy.train.retrain`, since a search keeps no weights."""
    study = StudyFiles(folder)
    table = study.trials
    row = table[(table["stage"] == arm) & (table["trial"] == number)].iloc[0].to_dict()
    predictions = pd.read_parquet(trained / TEST_PREDICTIONS, columns=["label", "prediction"])
    key = {"trial": number, "search": study.stage(arm).name, "epochs": int(row["epochs"])}
    lines = card.of_trial(config, results(study), row, study.parameter_names)
    return Candidate(config.student, (trained / WEIGHTS,), predictions["label"].to_numpy(), correct_in(predictions),
                     key, lines, teacher=_teacher_of(row))


def teacher(config: StudyConfig, folder: Path, name: str | None = None) -> Candidate:
    """A teacher, by default that of the study's answer. Raises UserError if there is none of that name, or if it is not
    tested yet or is not a single model."""
    study = StudyFiles(folder)
    check_named(name, config.teacher_choice, folder)
    name = name or study.teacher
    stage, own = stage_for("teacher", name), config.all_teachers[name]
    predictions, done = study.teacher_predictions(stage_for("teacher_logits", name)), study.done(stage)
    if predictions is None or done is None:
        raise UserError(f"{folder} has no tested teacher yet; run `kdstudy run {folder} --until teacher_logits` first")
    if len(done["members"]) != 1:
        what = "a file of logits" if not done["members"] else f"{len(done['members'])} models"
        raise UserError(f"the teacher of {folder} is {what}, not one model; there is nothing to export")
    (member,) = done["members"]
    check_function(member["model"]["model"], own, section_of(name))
    settings = ModelSettings.model_validate(member["model"] | {"pretrained": own.pretrained})
    normalised = tuple(map(tuple, member["normalised"])) if member["normalised"] else None
    return Candidate(settings, (study.stage(stage) / member["weights"],), predictions["label"].to_numpy(),
                     correct_in(predictions), {"teacher": study.stage(stage).name}, card.of_teacher(config, own, done),
                     normalised, teacher=name)


def _confirmed(folder: Path, name: str) -> tuple[StudyFiles, dict[str, Any]]:
    """The study, and the confirmed row of that name. Raises UserError."""
    study = StudyFiles(folder)
    if study.confirmation is None:
        raise UserError(f"{folder} has no confirmed student yet; run `kdstudy run {folder}` first")
    names = {f"{row['arm']} {row['configuration']}": row for row in study.confirmation["rows"]}
    if name not in names:
        raise UserError(f"--row {name!r} is not a row of {folder}; its rows are {', '.join(map(repr, names))}")
    return study, names[name]


def _index_of(study: StudyFiles, confirmed: dict[str, Any], seeds: list[int], seed: int) -> int:
    """Which of a row's runs has this seed. Raises UserError if none has, or if that run diverged."""
    known = seeds[: len(confirmed["runs"])]
    if seed not in known:
        raise UserError(f"--seed {seed} is not a confirmation seed; these are {', '.join(map(str, known))}")
    index = known.index(seed)
    if confirmed["runs"][index] in study.failed_runs(confirmed["stage"]):
        raise UserError(f"--seed {seed}: that run diverged; choose another of {', '.join(map(str, known))}")
    return index


def _teacher_of(parameters: dict[str, Any]) -> str:
    name = parameters.get("teacher")
    return name if isinstance(name, str) else MAIN


def _weights(study: StudyFiles, confirmed: dict[str, Any], run: int, name: str) -> Path:
    weights = study.stage(confirmed["stage"]) / "runs" / f"{run:03d}" / WEIGHTS
    if not weights.exists():
        raise UserError(f"{study.folder} has no weights of run {run}, {name!r}; it was packed without them")
    return weights

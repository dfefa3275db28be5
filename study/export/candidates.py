"""Which models of a study can be exported: the teacher, and each confirmed student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy.analysis.outcome import results
from kdstudy.analysis.study_files import StudyFiles, find_row
from kdstudy.config.permission import check_function
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.export import card
from kdstudy.trainables.models import Normalisation
from kdstudy.trainables.settings import ModelSettings

CHOSEN = "distilled tuned"  # the row that the study exports


@dataclass(frozen=True)
class Candidate:
    """A model that was tested.

    weights: its file. normalised: its mean and std per channel; None for those that its settings say. predictions: what
    the study recorded for the test images, as `StudyFiles.predictions`. key: what identifies the export. card: the
    first lines of its model card.
    """

    settings: ModelSettings
    weights: Path
    predictions: pd.DataFrame
    key: dict[str, Any]
    card: list[str]
    normalised: Normalisation | None = None


def student(config: StudyConfig, folder: Path, name: str = CHOSEN) -> Candidate:
    """A confirmed student: its last epoch on the first confirmation seed with which it did not diverge.

    name: its arm and configuration, as in the results table; by default the distilled student that the study chose.
    Raises UserError if the confirmation is not done or has no such row or no weights of it.
    """
    study = StudyFiles(folder)
    if study.confirmation is None:
        raise UserError(f"{folder} has no confirmed student yet; run `kdstudy run {folder}` first")
    names = {f"{row['arm']} {row['configuration']}": row for row in study.confirmation["rows"]}
    if name not in names:
        raise UserError(f"--row {name!r} is not a row of {folder}; its rows are {', '.join(map(repr, names))}")
    confirmed = names[name]
    key = confirmed["arm"], confirmed["configuration"]
    index = study.exported_index(*key)
    if index is None:
        raise UserError(f"{folder} has no student to export as {name!r}: it diverged on every confirmation seed")
    number = confirmed["runs"][index]
    weights = study.stage(confirmed["stage"]) / "runs" / f"{number:03d}" / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{folder} has no weights of {name!r}; it was packed without them")
    outcome = results(study)
    is_chosen = study.export_key(*key) == study.export_key()  # rows may share their runs
    lines = card.of_student(config, outcome, find_row(outcome, *key), study.done(confirmed["stage"])["seeds"][index],
                            is_chosen)
    return Candidate(config.student, weights, study.predictions(number, confirmed["stage"]), study.export_key(*key),
                     lines)


def teacher(config: StudyConfig, folder: Path) -> Candidate:
    """The teacher. Raises UserError if it is not tested yet or is not a single model."""
    study = StudyFiles(folder)
    predictions, done = study.teacher_predictions(), study.done("teacher")
    if predictions is None or done is None:
        raise UserError(f"{folder} has no tested teacher yet; run `kdstudy run {folder} --until teacher_logits` first")
    if len(done["members"]) != 1:
        what = "a file of logits" if not done["members"] else f"{len(done['members'])} models"
        raise UserError(f"the teacher of {folder} is {what}, not one model; there is nothing to export")
    (member,) = done["members"]
    check_function(member["model"]["model"], config)
    settings = ModelSettings.model_validate(member["model"] | {"pretrained": config.teacher.pretrained})
    normalised = tuple(map(tuple, member["normalised"])) if member["normalised"] else None
    return Candidate(settings, study.stage("teacher") / member["weights"], predictions,
                     {"teacher": study.stage("teacher").name}, card.of_teacher(config, done), normalised)

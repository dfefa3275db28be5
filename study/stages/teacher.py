"""The teacher stage: train one run per learning rate, or use given models or a given file of logits."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from safetensors.numpy import save_file

from kdstudy.config.permission import check_function
from kdstudy.config.sections import TeacherSettings
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.search.runs import METRIC, best_or_fail
from kdstudy.stages import logits_file, students
from kdstudy.stages.base import COPIES_IN_CHECKPOINT, Space, Stage, StageFolder, Workload
from kdstudy.stages.logits_file import LogitsFile
from kdstudy.stages.weights import count_parameters, keep_weights, read_checked, weights_check
from kdstudy.store import files
from kdstudy.store.fingerprints import changed, existing, fingerprint, hash_file, hash_input, model_inputs
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, FileName, Parameters, Part, Share, StageFiles, Whole
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.models import Normalisation, Trained
    from kdstudy.trainables.task import Member, Task, Teacher

WEIGHTS = "model.safetensors"
REPORTS = 20  # per teacher run
NORMALISATION = ("mean", "std", "normalise")  # settings


class MemberFile(Part):
    """One model of the teacher, as stored in the done-mark."""

    model: ModelSettings
    weights: FileName
    normalised: Annotated[list[list[float]], Field(min_length=2, max_length=2)] | None


class TeacherDone(Done):
    model: str
    members: list[MemberFile]
    kind: str | None
    family: str | None
    parameters: Parameters
    model_parameters: Annotated[Whole, Field(ge=1)] | None
    best_validation: Share
    trials: Whole
    weights: str


class TeacherStage(Stage):
    """A teacher. section: the one of the study file that describes it."""

    name = section = trains = "teacher"
    loop = "teacher"
    files = StageFiles(TeacherDone, frozenset({"teacher"}), distils=False)

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int:
        return len(config.teacher_in(cls.section).learning_rates)

    @classmethod
    def images_per_epoch(cls, data: dict[str, Any], trial: TrialState) -> int:
        return data["train"]

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        for file in source.glob("*.safetensors") if teacher else ():
            shutil.copyfile(file, target / file.name)

    @property
    def settings(self) -> TeacherSettings:
        return self.config.teacher_in(self.section)

    def inputs(self) -> list[Any]:
        config, images, teacher = self.config, self.context.image_hashes, self.settings
        if teacher.logits:
            return ["logits", hash_input(existing(teacher.logits, f"{self.section}.logits"))]
        if teacher.trained:
            digests = [hash_input(file) for path in teacher.trained for file in self._files_of(path)]
            return ["trained", digests, images["validation"], self.context.image_size, teacher.precision,
                    *self._how_given()]
        return [config.seed, model_inputs(self.section, teacher.model_settings), changed(teacher.train_settings),
                self.rates, students.view_inputs(config, exclude=("count", "erase_teacher")), images["train"],
                images["validation"], self.context.image_size]

    @property
    def rates(self) -> float | tuple[float, ...]:
        """The learning rates to try, for the fingerprint."""
        return self.settings.lr

    def _files_of(self, path: str) -> list[Path]:
        """Return the files that a given model is read from: a file of weights, or those of a folder."""
        if self.settings.model:
            return [existing(path, f"{self.section}.trained")]
        found = sorted(existing(path, f"{self.section}.trained", folder=True).glob("*"))
        return [file for file in found if file.is_file() and file.suffix in (".json", ".safetensors", ".bin")]

    def _how_given(self) -> list[Any]:
        """Return what the settings, not the files, say of given models: the model of files, its mean and std."""
        settings = self.settings.model_settings
        if settings.model:
            said = model_inputs(self.section, settings.model_copy(update={"pretrained": False}))
        else:
            said = {name: value for name, value in changed(settings).items() if name in NORMALISATION}
        measured = [self.context.image_hashes["train"]] if settings.normalise == "images" else []
        return [said, *measured] if said else []

    # -- trained by the study -----------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        return self.settings.epochs

    @property
    def workers(self) -> int:
        return self.config.resources.teacher_workers

    def runs(self) -> tuple[TrialState, ...]:
        """Return one run per learning rate, otherwise identical."""
        seed = small_seed(self.config.seed, "teacher")
        return tuple(TrialState(0, {"lr": lr}, seed, seed, "teacher") for lr in self.settings.learning_rates)

    def task(self) -> Task:
        config, training = self.config, self.settings.train_settings
        every = max(1, training.epochs // REPORTS)
        # views.count limits how many views have stored logits; the teacher itself sees a new view every epoch.
        views = config.views.model_copy(update={"count": None})
        return replace(students.plain_task(self.context), train=self.context.splits.train,
                       model=self.context.model(self.section), training=training, views=views, report_every=every,
                       checkpoint_every=5 * every, keep_weights=True, unlabelled=None,
                       weights=self.context.initial_weights(self.section))

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        return weights_check(self.context, folder)

    def close(self, folder: StageFolder) -> None:
        record = folder.record()
        best = best_or_fail(self.name, record, "run the same command again to retry")
        weights, teacher = keep_weights(self.context, folder, best), self.settings
        parameters, tried = count_parameters(files.read_weights(weights)), len(self.runs())
        normalised = self._chosen_normalisation()
        member = {"model": _stored(teacher.model_settings), "weights": WEIGHTS,
                  "normalised": list(map(list, normalised)) if normalised else None}
        folder.finish({
            "model": teacher.title, **self.context.family(self.section), "members": [member],
            "outcome": f"{teacher.model} · {100 * best.metric(METRIC):.1f} % validation · {parameters:,} parameters"
                       + (f", best of {tried} learning rates" if tried > 1 else ""),
            "seconds": record.seconds, "trial": best.number, "parameters": best.parameters,
            "model_parameters": parameters, "best_validation": best.metric(METRIC), "trials": tried,
            "weights": hash_file(weights),
        })

    # -- given --------------------------------------------------------------------------------------------------------

    @property
    def is_given(self) -> bool:
        return self.settings.is_given

    @cached_property
    def given_members(self) -> list[Trained]:
        """Load the models of a given teacher. Raises UserError if they do not fit the data."""
        return [self._given_member(path) for path in self.settings.trained or ()]

    def _given_member(self, folder: str) -> Trained:
        from kdstudy.trainables import models  # imports torch

        names, normalised = self.context.splits.class_names, self._chosen_normalisation()
        try:
            member = self._read_given(Path(os.path.expanduser(folder)))
            if normalised:
                member = replace(member, mean=normalised[0], std=normalised[1])
            if member.classes == len(names):
                models.check_trained(member, **self.context.shape)
        except ValueError as error:
            raise UserError(f"{self.section}.trained: {folder}: {self._of_section(str(error))}") from None
        if member.classes != len(names):
            raise UserError(f"{self.section}.trained: {folder} has {member.classes} classes, but the data have "
                            f"{len(names)}; train it on these data, or choose data.classes accordingly")
        if member.class_names and member.class_names != names:
            raise UserError(f"{self.section}.trained: the classes of {folder} are not those of the data in the same "
                            f"order: {member.class_names[:3]} … against {names[:3]} …")
        return member

    def _of_section(self, text: str) -> str:
        """The text, which speaks of [teacher] and its settings, about this teacher."""
        if self.section == "teacher":
            return text
        return text.replace("teacher.", f"{self.section}.").replace("the teacher", f"the teacher of [{self.section}]")

    def _read_given(self, path: Path) -> Trained:
        """Read one of the models of a given teacher. Raises ValueError."""
        from kdstudy.trainables import models  # imports torch

        teacher = self.settings
        if not teacher.model:
            return models.read_trained(path, teacher.function)
        if path.is_dir():
            raise ValueError(f"it is a folder, whose config.json names its model; --set {self.section}.model= "
                             "removes the study's own model")
        try:
            models.check(teacher.model_settings, **self.context.shape)
        except ValueError as error:
            raise UserError(f"{self.section}.{error}") from None
        return models.read_trained_file(path, teacher.model_settings, **self.context.shape)

    def _chosen_normalisation(self) -> Normalisation | None:
        """Return the mean and std per channel that the settings name or have measured; None if the models' own are
        used. Raises UserError."""
        from kdstudy.trainables import models  # imports torch

        try:
            return models.chosen_normalisation(self.context.model(self.section), self.context.splits.channels)
        except ValueError as error:
            raise UserError(f"{self.section}.{error}") from None

    @cached_property
    def given_logits(self) -> LogitsFile:
        """Open the file at teacher.logits. Raises UserError if it does not fit the study."""
        path = Path(os.path.expanduser(self.settings.logits))
        try:
            return logits_file.read(path, self.context)
        except ValueError as error:
            raise UserError(f"{self.section}.logits = {self.settings.logits!r}: {error}") from None

    def check_given(self) -> None:
        """Raises UserError if the given teacher does not fit the study."""
        _ = self.given_logits if self.settings.logits else self.given_members

    def given_teacher(self, normalised: Normalisation | None = None) -> Teacher:
        """Return the given models as a teacher. normalised: mean and std in place of their own."""
        from kdstudy.trainables.task import Member, Teacher  # imports torch

        return Teacher(tuple(Member(member.model, self.settings.train_settings, member.weights,
                                    normalised or (member.mean, member.std)) for member in self.given_members))

    def doubt(self, predictions: np.ndarray, predict: Callable[[Task], np.ndarray] | None = None) -> str | None:
        """Say what speaks against a given teacher, from its predictions (N,) for the validation images; None if nothing
        is known to.

        predict: as for `take_given`; if it is given and the teacher's files do not say how images are normalised, the
        usual ways are tried on a few hundred images.
        """
        from kdstudy.stages import doubts  # imports scipy

        splits = self.context.splits
        labels, few = splits.validation.labels, doubts.few_of(len(splits.validation))
        said = doubts.of_order(predictions, labels, splits.class_names)
        if said is None:
            others = self._otherwise_normalised(predict, few) if predict and self.settings.model else {}
            said = (doubts.of_normalisation(predictions[few], labels[few], self.shown_normalisation, others)
                    or doubts.of_guessing(predictions, labels, splits.class_names, self.shown_normalisation))
        return said and self._of_section(said)

    def _otherwise_normalised(self, predict: Callable[[Task], np.ndarray], few: np.ndarray) -> dict[str, np.ndarray]:
        """Return the teacher's predictions for the validation images at `few` (M,), by other means and stds in words.
        """
        from kdstudy.trainables import models  # imports torch

        splits, settings = self.context.splits, self.given_members[0].model
        images = splits.validation.take(few)
        # Only what is needed, since every task is sent to a worker.
        task = replace(students.plain_task(self.context), train=images, validation=images, unlabelled=None)
        own, measured = task.build_model(settings), models.mean_and_std(splits.train.images)
        ways = [(own.mean, own.std), *models.usual(splits.channels), *([measured] if min(measured[1]) else [])]
        shown = {models.show_normalisation(*way): way for way in ways}
        return {words: predict(replace(task, teacher=self.given_teacher(way))) for words, way in shown.items()
                if words != self.shown_normalisation}

    def take_given(self, folder: StageFolder, predict: Callable[[Task], np.ndarray]) -> str | None:
        """Copy the given weights into the study, and see how good the teacher is on the validation images."""
        started = time.monotonic()
        if self.settings.logits:
            self._finish_given(folder, self.given_logits.accuracy, started, {
                "weights": self.inputs()[1], "members": [], "model_parameters": None, "kind": None, "family": None})
            return self.doubt(self.given_logits.validation)
        from kdstudy.trainables import models  # imports torch

        # Predict first, on a worker: if that fails, no files are left behind.
        predictions = predict(replace(students.plain_task(self.context), teacher=self.given_teacher()))
        doubt = self.doubt(predictions, predict)
        accuracy = float((predictions == self.context.splits.validation.labels).mean())
        members, digests, parameters = [], [], 0
        for index, member in enumerate(self.given_members):
            path = folder.path / f"member-{index}.safetensors"
            save_file(member.weights, path)
            members.append({"model": _stored(member.model), "weights": path.name,
                            "normalised": [list(member.mean), list(member.std)]})
            digests.append(hash_file(path))
            parameters += count_parameters(member.weights)
        kinds = {models.kind_of(member.model, **self.context.shape) for member in self.given_members}
        kind, family = kinds.pop() if len(kinds) == 1 else ("ensemble", "ensemble")
        self._finish_given(folder, accuracy, started, {
            # The result also depends on how the weights are used: image size, mean and std.
            "weights": fingerprint(digests, [{**member, "weights": None} for member in members]),
            "members": members, "model_parameters": parameters, "kind": kind, "family": family})
        return doubt

    def _finish_given(self, folder: StageFolder, accuracy: float, started: float, facts: dict[str, Any]) -> None:
        title, count = self.settings.title, len(facts["members"])
        folder.finish({
            "model": title, **facts, "outcome": f"{title}{self.parts_read} · given · {100 * accuracy:.1f} % validation"
            + (f" · mean logits of {count} models" if count > 1 else ""),
            "seconds": time.monotonic() - started, "parameters": {}, "best_validation": accuracy, "trials": 0,
        })

    @property
    def shown_normalisation(self) -> str:
        """Say with which mean and std given models get their images; "" for a file of logits."""
        from kdstudy.trainables import models  # imports torch

        shown = dict.fromkeys(models.show_normalisation(member.mean, member.std) for member in self.given_members)
        return " / ".join(shown)

    @property
    def parts_read(self) -> str:
        """Say which part of given files is read, where they hold more than weights."""
        found = dict.fromkeys(member.part for member in self.given_members if member.part)
        return f" (its {', '.join(found)})" if found else ""

    # -- for other stages ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> dict[str, Any]:
        """The contents of the done-mark. Raises MissingTeacherError if the teacher is not available yet."""
        done = self.folder.done
        if done is None:
            raise MissingTeacherError
        return done

    @property
    def weights_hash(self) -> str:
        """A fingerprint of the teacher's weights. Raises MissingTeacherError."""
        return self.done["weights"]

    def members(self) -> tuple[Member, ...]:
        """Load the teacher's models. Raises MissingTeacherError, or StudyFailedError if their files are damaged."""
        return self._members(self.folder.path, self.done["members"])

    def _members(self, folder: Path, described: list[dict[str, Any]]) -> tuple[Member, ...]:
        return tuple(self._member(folder, member) for member in described)

    def _member(self, folder: Path, described: dict[str, Any]) -> Member:
        from kdstudy.trainables import models  # both import torch
        from kdstudy.trainables.task import Member

        check_function(described["model"]["model"], self.settings, self.section)
        settings, path = ModelSettings.model_validate(described["model"]), folder / described["weights"]
        normalised = described["normalised"]

        def check(weights: dict[str, np.ndarray]) -> None:
            models.check(settings, **self.context.shape)
            models.check_weights(settings, weights, **self.context.shape)
            if normalised:
                models.check_normalisation(*normalised, self.context.splits.channels)

        return Member(settings, self.settings.train_settings, read_checked(path, check),
                      tuple(map(tuple, normalised)) if normalised else None)

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        """The models whose logits the student learns from; empty if only a file of logits is given."""
        if self.settings.is_given:
            return tuple(member.model for member in self.given_members)
        return (self.context.model(self.section),)

    @property
    def named_models(self) -> dict[str, ModelSettings]:
        """These, each with the setting that it comes from."""
        if not self.settings.is_given:
            return {self.section: self.models[0]}
        return {f"{self.section}.trained: {path}": model
                for path, model in zip(self.settings.trained or (), self.models, strict=True)}

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        teacher = self.settings
        return Workload(runs=0 if teacher.is_given else len(teacher.learning_rates), epochs=teacher.epochs,
                        images=len(self.context.splits.train), models=self.models,
                        passes=students.passes(teacher.train_settings), workers=self.workers)

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        weights = sum(map(size, self.models))
        copies = COPIES_IN_CHECKPOINT + (self.settings.ema > 0)
        return Space(copies * weights, (runs + 1) * weights, f"trained teachers (one for each {self.section}.lr)")


def _stored(settings: ModelSettings) -> dict[str, Any]:
    """Return a trained model's settings for the done-mark, which keeps its mean and std beside them. Fingerprints are
    made of these, so settings of how it is trained stay out."""
    return settings.model_copy(update={"pretrained": False}).model_dump(exclude=set(NORMALISATION))

"""What a study works with: its images, the models that are given, and the folders of its stages.

Each folder is named after the fingerprint of its own part of the settings and of its inputs, so what one study has done
another recognises.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstudy.config.models import trained_models
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.search.runs import search_view_seed
from kdstudy.stages import logits_file
from kdstudy.stages.logits_file import LogitsFile
from kdstudy.store import check as schema
from kdstudy.store import files
from kdstudy.store.fingerprints import changed, existing, fingerprint, hash_images, hash_input, model_inputs
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.trainables import data
from kdstudy.trainables.data import Splits
from kdstudy.trainables.seeds import small_seed

if TYPE_CHECKING:  # they import torch, which a finished study can do without
    from kdstudy.trainables.models import Trained


@dataclass
class Stage:
    """A stage's folder and what its done-mark says."""

    name: str
    path: Path
    storage: Storage
    facts: dict[str, Any] = field(default_factory=dict)  # for its done-mark, besides the outcome

    @property
    def done(self) -> dict[str, Any] | None:
        """What the done-mark says; None where there is none or where any of the stage's files has gone or is cut short.
        """
        done = files.read_json(self.path / "done.json")
        return done if schema.is_done(self.name, done) and files.vouched_for(self.path, done) else None

    @property
    def record_path(self) -> Path:
        return self.path / "record.jsonl"

    def record(self) -> Record:
        """The record, to be written to."""
        return Record(self.record_path, storage=self.storage)

    def finish(self, outcome: dict[str, Any]) -> None:
        files.write_done(self.path, outcome | self.facts)
        self.storage.publish(self.path)


class StudyInputs:
    """A study's settings and storage, and what follows from them before anything runs."""

    def __init__(self, config: StudyConfig, storage: Storage):
        self.config, self.storage, self.folder = config, storage, storage.folder
        self._weights: dict[str, dict[str, np.ndarray] | None] = {}

    # -- images and models --------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        try:
            return data.load(self.config.data)
        except ValueError as error:
            raise UserError(str(error)) from None

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        names = ("train", "student_train", "validation", "test", "unlabelled")
        return {name: hash_images(images) for name in names if (images := getattr(self.splits, name)) is not None}

    @property
    def image_size(self) -> int:
        return self.config.data.image_size or self.splits.image_size

    def initial_weights(self, section: str) -> dict[str, np.ndarray] | None:
        """What a section's training begins with; None is random. Fetched once, here, and handed to the workers."""
        from kdstudy.trainables import models

        if section not in self._weights:
            try:
                self._weights[section] = models.pretrained_weights(trained_models(self.config)[section], **self._shape)
            except ValueError as error:
                raise UserError(f"{section}.{error}") from None
        return self._weights[section]

    @property
    def _shape(self) -> dict[str, int]:
        """What the data ask of every model."""
        return {"classes": len(self.splits.class_names), "channels": self.splits.channels,
                "image_size": self.image_size}

    @cached_property
    def given_members(self) -> list[Trained]:
        """The models of a teacher that is trained already. Raises UserError where they do not fit the data."""
        from kdstudy.trainables import models

        members = []
        for folder in self.config.teacher.trained or ():
            names = self.splits.class_names
            try:
                member = models.read_trained(Path(os.path.expanduser(folder)), self.config.teacher.function)
                if member.classes == len(names):
                    models.check_trained(member, **self._shape)
            except ValueError as error:
                raise UserError(f"teacher.trained: {folder}: {error}") from None
            if member.classes != len(names):
                raise UserError(f"teacher.trained: {folder} knows {member.classes} classes, but the data have "
                                f"{len(names)}; train it on these data, or choose data.classes accordingly")
            if member.class_names and member.class_names != names:
                raise UserError(f"teacher.trained: the classes of {folder} are not those of the data in the same "
                                f"order: {member.class_names[:3]} … against {names[:3]} …")
            members.append(member)
        return members

    @cached_property
    def _logits_file(self) -> LogitsFile:
        try:
            return logits_file.read(Path(os.path.expanduser(self.config.teacher.logits)), self)
        except ValueError as error:
            raise UserError(f"teacher.logits = {self.config.teacher.logits!r}: {error}") from None

    def _family(self, section: str) -> dict[str, str]:
        """What kind of model a section's is, and of which class."""
        from kdstudy.trainables import models

        kind, family = models.kind_of(trained_models(self.config)[section], **self._shape)
        return {"kind": kind, "family": family}

    # -- the teacher's answers ----------------------------------------------------------------------------------------

    @property
    def view_seeds(self) -> list[int]:
        """One for the search, one for every confirmation seed."""
        return [search_view_seed(self.config.seed), *self._confirm_seeds()]

    def _confirm_seeds(self) -> list[int]:
        return [small_seed(self.config.seed, "confirm", index) for index in range(self.config.confirm.seeds)]

    @property
    def augments(self) -> bool:
        """Whether views differ from the plain images."""
        views = self.config.views
        return bool(views.shift or views.flip or views.scale or views.mixup)

    @property
    def logits_bytes(self) -> int:
        """Of the teacher's answers for all views, once they are kept."""
        splits = self.splits
        return 2 * len(self.view_seeds) * self.config.view_count * splits.seen_by_student * len(splits.class_names)

    @property
    def logits_fit(self) -> bool:
        return self.logits_bytes <= self.config.views.cache_gib * 2**30

    # -- folders ------------------------------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        return Stage(name, self.folder / f"{name}-{self._fingerprint(name)}", self.storage)

    def _fingerprint(self, name: str) -> str:
        return fingerprint(name, *getattr(self, f"_{name}_inputs")())

    def _shared_inputs(self) -> list[Any]:
        """What decides how a student is trained, whatever the arm."""
        config, images = self.config, self.image_hashes
        return [config.seed, model_inputs("student", config.student), changed(config.train), self._view_inputs(),
                images["student_train"], images["validation"], self.image_size]

    def _view_inputs(self, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
        return changed(self.config.views, exclude=("cache_gib", *exclude))

    def _teacher_inputs(self) -> list[Any]:
        config, images = self.config, self.image_hashes
        teacher = config.teacher
        if teacher.logits:
            return ["logits", hash_input(existing(teacher.logits, "teacher.logits"))]
        if teacher.trained:
            files = [file for folder in teacher.trained
                     for file in sorted(existing(folder, "teacher.trained", folder=True).glob("*")) if file.is_file()]
            digests = [hash_input(file) for file in files if file.suffix in (".json", ".safetensors", ".bin")]
            return ["trained", digests, images["validation"], self.image_size, teacher.precision]
        return [config.seed, model_inputs("teacher", teacher.model_settings), changed(teacher.train_settings),
                teacher.lr, self._view_inputs(exclude=("count",)), images["train"], images["validation"],
                self.image_size]

    def _search_inputs(self, arm: str) -> list[Any]:
        config = self.config
        space = {name: dimension.model_dump() for name, dimension in config.space(arm).items()}
        inputs = [*self._shared_inputs(), space, config.default_parameters(arm), config.protected(arm), config.rungs,
                  config.search.reduction_factor, config.report_every]
        return [*inputs, {"warm_start": config.search.warm_start}] if config.search.warm_start else inputs

    def _baseline_inputs(self) -> list[Any]:
        return self._search_inputs("baseline")

    def _teacher_logits_inputs(self) -> list[Any]:
        config = self.config
        return [self._teacher_weights_hash, self._teacher_done["members"], self.image_hashes, self.image_size,
                self._view_inputs(), config.train.epochs, config.teacher.precision]

    def _distill_inputs(self) -> list[Any]:
        return [*self._search_inputs("distill"), *self._answer_inputs()]

    def _answer_inputs(self) -> list[Any]:
        """What the soft loss is made of."""
        config, inputs = self.config, [self._teacher_weights_hash]
        if config.teacher.precision != "auto":
            inputs.append(config.teacher.precision)
        if config.data.unlabelled:
            inputs += [self.image_hashes["unlabelled"], config.data.unlabelled]
        return inputs

    def _finalists_baseline_inputs(self) -> list[Any]:
        return self._shared_inputs()

    def _finalists_inputs(self) -> list[Any]:
        return [*self._shared_inputs(), *self._answer_inputs()]

    def _confirm_baseline_inputs(self) -> list[Any]:
        return [*self._shared_inputs(), self.image_hashes["test"]]

    def _confirm_inputs(self) -> list[Any]:
        return [*self._confirm_baseline_inputs(), *self._answer_inputs()]

    @property
    def _teacher_done(self) -> dict[str, Any]:
        """What the teacher's done-mark says. Raises MissingTeacherError where it is not there yet."""
        done = self.stage("teacher").done
        if done is None:
            raise MissingTeacherError
        return done

    @property
    def _teacher_weights_hash(self) -> str:
        return self._teacher_done["weights"]

"""The context that all stages of a study share: settings, storage, images, and access to other stages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstudy.config.models import trained_models
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.search.runs import search_view_seed
from kdstudy.store.fingerprints import existing, hash_images
from kdstudy.store.schema import StageFiles
from kdstudy.store.storage import Storage
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:
    from kdstudy.trainables.data import Splits


class Context:
    """A study as its stages see it. Images and pretrained weights are loaded on first use.

    kinds: the classes of all stages, subclasses of `kdstudy.stages.base.Stage`.
    """

    def __init__(self, config: StudyConfig, storage: Storage, kinds: Iterable[type]):
        self.config, self.storage, self.folder = config, storage, storage.folder
        self._stages = {kind.name: kind(self) for kind in kinds}
        self._weights: dict[str, dict[str, np.ndarray] | None] = {}
        self._models: dict[str, ModelSettings] = {}

    # -- the stages ---------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> dict[str, Any]:
        """The stages of this study by name, in order."""
        return {name: stage for name, stage in self._stages.items() if stage.is_wanted(self.config)}

    def stage(self, name: str) -> Any:
        """Return a stage by name, even one that this study does not use."""
        return self._stages[name]

    @property
    def stage_files(self) -> dict[str, StageFiles]:
        return {name: stage.files for name, stage in self._stages.items()}

    # -- images and models --------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        """The images of all splits. Raises UserError if they cannot be read."""
        from kdstudy.trainables import data  # pyarrow and Pillow take long to import

        try:
            return data.load(self.config.data)
        except ValueError as error:
            raise UserError(str(error)) from None

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        """Return a digest of the images and labels of each split."""
        names = ("train", "student_train", "validation", "test", "unlabelled")
        return {name: hash_images(images) for name in names if (images := getattr(self.splits, name)) is not None}

    @property
    def image_size(self) -> int:
        """The image size in pixels for models that do not set their own."""
        return self.config.data.image_size or self.splits.image_size

    @property
    def shape(self) -> dict[str, int]:
        """The classes, channels and image_size (pixels) that every model must support."""
        return {"classes": len(self.splits.class_names), "channels": self.splits.channels,
                "image_size": self.image_size}

    def model(self, section: str) -> ModelSettings:
        """Return the model of a section, `student` or a teacher's. If its mean and std are to be measured, they are: on
        the labelled images that it learns from, the same in both arms. Raises UserError."""
        settings = self.config.student if section == "student" else self.config.teacher_in(section).model_settings
        if settings.normalise != "images":
            return settings
        if section not in self._models:
            from kdstudy.trainables import models  # imports torch

            images = self.splits.student_train if section == "student" else self.splits.train
            try:
                self._models[section] = models.with_measured(settings, images)
            except ValueError as error:
                raise UserError(f"{section}.{error}") from None
        return self._models[section]

    def initial_weights(self, section: str) -> dict[str, np.ndarray] | None:
        """Return the weights with which a section's training starts, or None for random weights.

        They are downloaded once, here, and sent to the workers. Raises UserError."""
        from kdstudy.trainables import models  # imports torch

        if section not in self._weights:
            try:
                self._weights[section] = models.pretrained_weights(trained_models(self.config)[section], **self.shape)
            except ValueError as error:
                raise UserError(f"{section}.{error}") from None
        return self._weights[section]

    def check_weights(self, section: str) -> None:
        """Check that a section's training can begin with the weights that it wants: a file is read, a hub is asked.

        Raises UserError.
        """
        from kdstudy.trainables import models  # imports torch

        settings = trained_models(self.config)[section]
        try:
            models.check_hub(settings)
        except ValueError as error:
            raise UserError(f"{section}.{error}") from None
        if isinstance(settings.pretrained, str):
            existing(settings.pretrained, f"{section}.pretrained")
            self.initial_weights(section)

    def show_weights(self, section: str) -> str:
        """Say which weights file a section's training begins with, and which part of it; "" if with none."""
        from kdstudy.trainables import models  # imports torch

        path = trained_models(self.config)[section].pretrained
        if not isinstance(path, str):
            return ""
        try:
            part = models.part_of(path)
        except ValueError as error:
            raise UserError(f"{section}.pretrained = {path!r}: {error}") from None
        return f", begins with {path}" + (f" (its {part})" if part else "")

    def family(self, section: str) -> dict[str, str]:
        """Return the `kind` and the `family` of a section's model; see `trainables.models.kind_of`."""
        from kdstudy.trainables import models  # imports torch

        kind, family = models.kind_of(trained_models(self.config)[section], **self.shape)
        return {"kind": kind, "family": family}

    # -- seeds and views ----------------------------------------------------------------------------------------------

    @property
    def confirm_seeds(self) -> list[int]:
        """The seeds of the confirmation's last planned look; earlier looks have the first of them."""
        return [small_seed(self.config.seed, "confirm", index) for index in range(self.config.confirm.most_seeds)]

    @property
    def view_seeds(self) -> list[int]:
        """The view seed of the search, followed by one per confirmation seed."""
        return [search_view_seed(self.config.seed), *self.confirm_seeds]

    @property
    def augments(self) -> bool:
        """Whether views differ from the plain images."""
        return self.config.views.augments

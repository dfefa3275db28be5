"""What a format is."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from kdstudy.errors import UserError
from kdstudy.export.average import MeanOfLogits
from kdstudy.trainables.data import Splits
from kdstudy.trainables.device import default_device
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.predictions import plain_logits
from kdstudy.trainables.settings import ModelSettings


@dataclass(frozen=True)
class Deployable:
    """A trained model, and what must be known beside its weights.

    model: on the CPU, in evaluation mode; either kind takes images (B, C, size, size) in 0..1 and normalises them
    itself. settings: how it is created. splits: the study's images and class names. resizes: whether graphs (onnx, pt2)
    take images of any size and resize them. stretched: whether the study stretched the images' brightness
    (data.stretch).
    """

    model: Classifier | MeanOfLogits
    settings: ModelSettings
    splits: Splits
    resizes: bool = False
    stretched: bool = False

    def logits(self, images: ImageSet) -> np.ndarray:
        """The model's logits (N, classes) for images as they are stored, computed on this machine's usual device."""
        logits = plain_logits(self.model.to(default_device()), images).cpu().numpy()
        self.model.cpu()
        return logits


class Format(ABC):
    """A way to write a model, so that it can be read without kdstudy.

    name: as in `--format`. source: the format from whose file it is made, which must be written before. requires: the
    modules that write and read it and that kdstudy itself does not need. extra: of this package, which installs them.
    largest_difference: of its logits from those of the model in the study, as a share of their standard deviation over
    all test images and classes; None where it may differ. repeats: the same, of its logits from its own on another
    machine.
    """

    name: ClassVar[str]
    source: ClassVar[str | None] = None
    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    largest_difference: ClassVar[float | None] = 1e-3
    repeats: ClassVar[float] = 1e-3

    def check_installed(self) -> None:
        """Raises UserError where a package is missing."""
        if missing := [name for name in self.requires if importlib.util.find_spec(name) is None]:
            raise UserError(f"the format {self.name} needs {' and '.join(missing)}; install with "
                            f"pip install 'kdstudy[{self.extra}]'")

    @abstractmethod
    def write(self, deployable: Deployable, folder: Path) -> list[str]:
        """Write the model's files into the folder. Returns their names. Raises StudyFailedError if this model cannot be
        written in this format."""

    @abstractmethod
    def usage(self, folder: str, deployable: Deployable) -> list[str]:
        """Return lines of Python that classify the image file `image.jpg` as the study would. folder: the name of the
        folder that holds the model."""

    def check_received(self, folder: Path, function: str | None, trust: bool) -> None:
        """See that reading this format's files, which may come from a stranger, runs no code, fetches nothing, and
        reads nothing outside the folder.

        function: the only function that may be called, as the user named it. trust: whether the user trusts the
        folder's author. Raises UserError with what to do, or StudyFailedError if the file does what none of ours does.
        """

"""What all runs of one stage share, and how one run is started from it. Plain Python: no Ray needed."""

import copy
import gc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainables import models
from trainables.data import ImageSet
from trainables.loop import (
    Evaluator,
    Objective,
    Training,
    autocast_dtype,
    default_device,
    place,
    read_only_tensor,
    to_device,
)
from trainables.models import Classifier
from trainables.settings import ModelSettings, TrainSettings, ViewSettings
from trainables.views import Views


@dataclass(frozen=True)
class Teacher:
    """A trained teacher as it travels to the runs.

    logits: per view seed, its answers for all views, (V, N, C) fp16; empty where they do not fit into memory.
    weights: state_dict as NumPy arrays, needed only where it answers live.
    validation_predictions: (N_validation,) int64, to measure how often a student agrees.
    """

    model: ModelSettings
    training: TrainSettings
    weights: dict[str, np.ndarray]
    validation_predictions: np.ndarray | None = None
    logits: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One stage's data and settings. Its arrays lie in Ray's object store and are not copied by the runs.

    report_every, checkpoint_every: epochs; a checkpoint is saved with the report at which it is due, 0 is never.
    keep_weights: also save after the last epoch.
    test: given only where weights are final; predicted once, after the last epoch.
    image_size: for models that do not name their own, pixels.
    """

    train: ImageSet
    validation: ImageSet
    classes: int
    image_size: int
    model: ModelSettings
    training: TrainSettings
    views: ViewSettings
    report_every: int
    checkpoint_every: int = 0
    keep_weights: bool = False
    threads: int = 1
    test: ImageSet | None = None
    teacher: Teacher | None = None

    @property
    def view_count(self) -> int:
        return self.views.count or self.training.epochs

    def build_model(self, settings: ModelSettings, seed: int = 0) -> Classifier:
        return models.build(settings, classes=self.classes, channels=self.train.images.shape[1],
                            image_size=self.image_size, seed=seed)

    def make_views(self, size: int, view_seed: int, device: torch.device) -> Views:
        images, labels = to_device(self.train, device)
        return Views(images, labels, self.views, view_seed=view_seed, count=self.view_count, size=size)

    def load_teacher(self, device: torch.device) -> Classifier:
        """The trained teacher, on the device."""
        model = self.build_model(self.teacher.model.model_copy(update={"pretrained": False}))
        model.net.load_state_dict({name: torch.tensor(array) for name, array in self.teacher.weights.items()})
        return place(model, self.teacher.training, device).eval()

    def teacher_autocast(self, device: torch.device) -> torch.dtype | None:
        return autocast_dtype(self.teacher.training, device)


def start(task: Task, parameters: dict, *, seed: int, view_seed: int, objective: Objective | None = None) -> Training:
    """Begin a run. `parameters` hold lr and any of the training settings that the search varies."""
    device = default_device()
    torch.set_num_threads(task.threads)
    overrides = {name: value for name, value in parameters.items() if name in TrainSettings.model_fields}
    settings = TrainSettings.model_validate(task.training.model_dump() | overrides)
    model = task.build_model(task.model, seed)
    predictions = task.teacher.validation_predictions if task.teacher else None
    validation = Evaluator(
        *to_device(task.validation, device), model.size,
        None if predictions is None else read_only_tensor(predictions).to(device),
    )
    train = task.make_views(model.size, view_seed, device)
    return Training(model, train, validation, settings, lr=parameters["lr"], seed=seed, objective=objective)


def save(training: Training, task: Task, folder: Path) -> None:
    """Write a checkpoint and, after the last epoch, the predictions for the test images."""
    training.save(folder)
    if training.finished and task.test is not None:
        write_predictions(training.model, task.test, folder / "test.parquet")


def write_predictions(model: Classifier, images: ImageSet, path: Path) -> None:
    """Parquet with a row per image: image, label, prediction, logits (fp16).

    Predicted in fp32 and in the plain memory format, as whoever loads the exported weights will.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    logits = Evaluator(*to_device(images, device), model.size).logits(model)
    half = logits.half().cpu().numpy()
    table = pa.table({
        "image": pa.array(np.arange(len(images), dtype=np.int32)),
        "label": pa.array(images.labels.astype(np.int32)),
        "prediction": pa.array(logits.argmax(1).cpu().numpy().astype(np.int32)),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1]),
    })
    pq.write_table(table, path, compression="zstd")


def release_memory() -> None:
    """Give back what a finished run held, so that the next one on this device finds it free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""What all runs of one stage share, and how one run is started from it. Plain Python: no Ray needed."""

import copy
import gc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdstudy.trainables import models
from kdstudy.trainables.data import ImageSet
from kdstudy.trainables.loop import (
    Evaluator,
    Objective,
    Training,
    autocast_dtype,
    default_device,
    place,
    read_only_tensor,
    to_device,
)
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.seeds import derive_seed
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.teacher_logits import TeacherModel
from kdstudy.trainables.views import Views


@dataclass(frozen=True)
class Member:
    """One trained model of a teacher: how to rebuild it, and how it computes.

    weights: state_dict as NumPy arrays. normalised: mean and std, unless they are the model's own.
    """

    model: ModelSettings
    training: TrainSettings
    weights: dict[str, np.ndarray]
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Teacher:
    """A trained teacher as it travels to the runs.

    members: its models, whose logits are averaged; empty where all answers are cached.
    logits: per view seed, its answers for all views, (V, N, C) fp16; empty where they do not fit into memory.
    unlabelled_logits: likewise for the images that the student sees without labels.
    validation_predictions: (N_validation,) int64, to measure how often a student agrees.
    """

    members: tuple[Member, ...] = ()
    validation_predictions: np.ndarray | None = None
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    unlabelled_logits: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One stage's data and settings. Its arrays lie in Ray's object store and are not copied by the runs.

    report_every, checkpoint_every: epochs; a checkpoint is saved with the report at which it is due, 0 is never.
    keep_weights: also save after the last epoch.
    test: given only where weights are final; predicted once, after the last epoch.
    image_size: for models that do not name their own, pixels.
    weights: what the trained model begins with, all but its head; random unless given.
    unlabelled: images that only the soft loss sees, `unlabelled_ratio` of them beside each labelled one in a batch.
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
    weights: dict[str, np.ndarray] | None = None
    unlabelled: ImageSet | None = None
    unlabelled_ratio: float = 0.0

    @property
    def view_count(self) -> int:
        return self.views.count or self.training.epochs

    def build_model(self, settings: ModelSettings, seed: int = 0, weights: dict[str, np.ndarray] | None = None,
                    normalised: tuple | None = None) -> Classifier:
        return models.build(settings, classes=self.classes, channels=self.train.images.shape[1],
                            image_size=self.image_size, seed=seed, weights=weights, normalised=normalised)

    def make_views(self, size: int, view_seed: int, device: torch.device) -> Views:
        images, labels = to_device(self.train, device)
        return Views(images, labels, self.views, view_seed=view_seed, count=self.view_count, size=size)

    def make_unlabelled_views(self, size: int, view_seed: int, device: torch.device) -> Views:
        """The views of the images without labels: drawn apart, so that their number changes nothing for the others."""
        images, labels = to_device(self.unlabelled, device)
        return Views(images, labels, self.views, view_seed=derive_seed(view_seed, "unlabelled"),
                     count=self.view_count, size=size)

    def load_teacher(self, device: torch.device) -> list[TeacherModel]:
        """The trained teacher's models, on the device, ready to answer."""
        loaded = []
        for member in self.teacher.members:
            model = self.build_model(member.model, weights=member.weights, normalised=member.normalised)
            model = place(model, member.training, device).eval()
            loaded.append(TeacherModel(model, autocast_dtype(member.training, device)))
        return loaded


def start(task: Task, parameters: dict, *, seed: int, view_seed: int, objective: Objective | None = None,
          kind: type[Training] = Training) -> Training:
    """Begin a run. `parameters` hold lr and any of the training settings that the search varies."""
    device = default_device()
    torch.set_num_threads(task.threads)
    overrides = {name: value for name, value in parameters.items() if name in TrainSettings.model_fields}
    settings = TrainSettings.model_validate(task.training.model_dump() | overrides)
    model = task.build_model(task.model, seed, task.weights)
    predictions = task.teacher.validation_predictions if task.teacher else None
    validation = Evaluator(
        *to_device(task.validation, device), model.size,
        None if predictions is None else read_only_tensor(predictions).to(device),
    )
    train = task.make_views(model.size, view_seed, device)
    return kind(model, train, validation, settings, lr=parameters["lr"], seed=seed, objective=objective)


def save(training: Training, task: Task, folder: Path) -> None:
    """Write a checkpoint and, after the last epoch, the predictions for the test images."""
    training.save(folder)
    if training.finished and task.test is not None:
        write_predictions(training.model, task.test, folder / "test.parquet")


def write_predictions(model: Classifier, images: ImageSet, path: Path) -> None:
    """Write a model's answers for some images.

    Predicted in fp32 and in the plain memory format, as whoever loads the exported weights will.
    """
    write_answers(plain_logits(model, images), images.labels, path)


def plain_logits(model: Classifier, images: ImageSet) -> torch.Tensor:
    """Logits (N, C) in fp32, computed in the plain memory format."""
    device = next(model.parameters()).device
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    return Evaluator(*to_device(images, device), model.size).logits(model)


def write_answers(logits: torch.Tensor, labels: np.ndarray, path: Path) -> None:
    """Parquet with a row per image: image, label, prediction, confidence (its probability), logits (fp16)."""
    half = logits.half().cpu().numpy()
    table = pa.table({
        "image": pa.array(np.arange(len(labels), dtype=np.int32)),
        "label": pa.array(labels.astype(np.int32)),
        "prediction": pa.array(logits.argmax(1).cpu().numpy().astype(np.int32)),
        "confidence": pa.array(logits.softmax(1).amax(1).cpu().numpy().astype(np.float32)),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1]),
    })
    pq.write_table(table, path, compression="zstd")


def release_memory() -> None:
    """Give back what a finished run held, so that the next one on this device finds it free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

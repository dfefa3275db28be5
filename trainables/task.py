"""What all runs of one stage share, and how one run starts from it. Plain Python: Ray is not needed."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from kdstudy.trainables import models
from kdstudy.trainables.device import autocast_dtype, default_device, move_model, read_only_tensor, to_device
from kdstudy.trainables.evaluator import Evaluator
from kdstudy.trainables.files import TEST_PREDICTIONS
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.loop import Objective, Training
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.predictions import plain_logits, write_predictions
from kdstudy.trainables.seeds import derive_seed
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.teacher_logits import TeacherModel, held_out
from kdstudy.trainables.views import Views


@dataclass(frozen=True)
class Member:
    """One trained model of a teacher: how to rebuild it, and in which precision and memory format it computes.

    weights: its state_dict as NumPy arrays. normalised: mean and std per channel, unless the model's own are used.
    """

    model: ModelSettings
    training: TrainSettings
    weights: dict[str, np.ndarray]
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Teacher:
    """A trained teacher, as the runs receive it.

    members: its models, whose logits are averaged; empty if all logits are cached.
    validation_predictions: (N_validation,) int64, to measure how often a student agrees.
    logits: for each view seed, the logits for all views of the training images, (V, N, C) fp16, or packed by `top_k`;
    empty if they do not fit into memory.
    unlabelled_logits: likewise for the images that the student sees without labels.
    features, unlabelled_features: likewise the pooled features, (V, N, D) fp16; empty unless a loss reads them.
    """

    members: tuple[Member, ...] = ()
    validation_predictions: np.ndarray | None = None
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    unlabelled_logits: dict[int, np.ndarray] = field(default_factory=dict)
    features: dict[int, np.ndarray] = field(default_factory=dict)
    unlabelled_features: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """The data and settings of one stage. Its arrays lie in Ray's object store; runs do not copy them.

    image_size: pixels, for models whose settings name no size.
    report_every, checkpoint_every: epochs. A checkpoint is saved with the first report that is due; 0 means never.
    keep_weights: whether to save after the last epoch too.
    threads: of torch, for each run on a CPU.
    test: only set if the weights are final; they are predicted once, after the last epoch.
    test_reports: whether every report also holds the accuracy on `test`. Only an audit of studies that choose the best
    test epoch may ask for that.
    other_teachers: by name, those that a run may have instead of `teacher`: its parameter `teacher` says which.
    weights: what the model starts from, all but its head; None for random weights.
    unlabelled: images that only the soft loss uses; a batch holds `unlabelled_ratio` of them for each labelled image.
    own_losses: functions of the user's own, package.module:function, that its runs may have as their loss.
    wants_features: whether runs that compute the teacher's logits also keep its features.
    control, control_seed: how the teacher's logits are changed, a key of `kdstudy.trainables.controls.CHANGES`; "" for
    the logits as they are.
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
    other_teachers: dict[str, Teacher] = field(default_factory=dict)
    weights: dict[str, np.ndarray] | None = None
    unlabelled: ImageSet | None = None
    unlabelled_ratio: float = 0.0
    own_losses: tuple[str, ...] = ()
    wants_features: bool = False
    control: str = ""
    control_seed: int = 0
    test_reports: bool = False

    @property
    def view_count(self) -> int:
        """How many different views there are; one per epoch unless the settings say otherwise."""
        return self.views.count or self.training.epochs

    def build_model(self, settings: ModelSettings, seed: int = 0, weights: dict[str, np.ndarray] | None = None,
                    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None) -> Classifier:
        """A model for this task's images and classes; the arguments are those of `models.build`. Raises ValueError if
        the mean and std that it asks for have not been measured."""
        if settings.normalise == "images" and normalised is None:
            raise ValueError("normalise = 'images' is not measured yet: models.with_measured(settings, images) does it")
        return models.build(settings, classes=self.classes, channels=self.train.images.shape[1],
                            image_size=self.image_size, seed=seed, weights=weights, normalised=normalised)

    def make_views(self, size: int, view_seed: int, device: torch.device, for_logits: bool = False) -> Views:
        """The views of the training images, rendered at `size` pixels. for_logits: as the teacher sees them, whose
        logits the student learns from."""
        return self._views(self.train, size, view_seed, device, for_logits)

    def make_unlabelled_views(self, size: int, view_seed: int, device: torch.device, for_logits: bool = False) -> Views:
        """The views of the unlabelled images. They have a seed of their own, so that their number does not change the
        views of the others."""
        return self._views(self.unlabelled, size, derive_seed(view_seed, "unlabelled"), device, for_logits)

    def _views(self, images: ImageSet, size: int, view_seed: int, device: torch.device, for_logits: bool) -> Views:
        settings = self.views
        if for_logits and not settings.erase_teacher:
            settings = settings.model_copy(update={"erase": 0.0})
        return Views(*to_device(images, device), settings, view_seed=view_seed, count=self.view_count, size=size)

    def load_teacher(self, device: torch.device) -> list[TeacherModel]:
        """The teacher's models on the device, in evaluation mode."""
        loaded = []
        for member in self.teacher.members:
            model = self.build_model(member.model, weights=member.weights, normalised=member.normalised)
            model = move_model(model, member.training, device).eval()
            loaded.append(TeacherModel(model, autocast_dtype(member.training, device)))
        return loaded


def start(task: Task, parameters: dict, *, seed: int, view_seed: int, objective: Objective | None = None,
          kind: type[Training] = Training) -> Training:
    """Start a run. Sets torch's number of threads.

    parameters: lr, and any training settings that the search varies; these replace the task's. objective: the parts of
    the loss, None for labels alone. kind: the class of the run.
    """
    device = default_device()
    torch.set_num_threads(task.threads)
    overrides = {name: value for name, value in parameters.items() if name in TrainSettings.model_fields}
    settings = TrainSettings.model_validate(task.training.model_dump() | overrides)
    own = task.model.model_copy(update={"args": task.model.args | settings.drop_rates()})
    model = task.build_model(own, seed, task.weights)
    predictions = task.teacher.validation_predictions if task.teacher else None
    validation = Evaluator(
        *to_device(task.validation, device), model.size,
        None if predictions is None else read_only_tensor(predictions).to(device),
    )
    train = task.make_views(model.size, view_seed, device)
    return kind(model, train, validation, settings, lr=parameters["lr"], seed=seed, objective=objective)


def teacher_predictions(task: Task) -> np.ndarray:
    """The classes (N,) int64 that the task's teacher predicts for the validation images."""
    device = default_device()
    logits = held_out(task.load_teacher(device), *to_device(task.validation, device))
    return logits.argmax(1).cpu().numpy()


def on_test(training: Training, task: Task) -> dict[str, float]:
    """What a report adds of the test images: test_accuracy (0..1), of the predictions that `save` would now write;
    nothing unless the task asks for it."""
    if not task.test_reports:
        return {}
    predicted = plain_logits(training.result, task.test).argmax(1).cpu().numpy()
    return {"test_accuracy": float((predicted == task.test.labels).mean())}


def save(training: Training, task: Task, folder: Path) -> None:
    """Write a checkpoint and, after the last epoch, the predictions for the test images if the task has any."""
    training.save(folder)
    if training.finished and task.test is not None:
        write_predictions(training.result, task.test, folder / TEST_PREDICTIONS)

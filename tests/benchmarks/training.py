"""What an epoch costs beside the plainest loop that does the same, and what the teacher adds to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.timing import Ratio, compare
from kdstudy.config.load import load_study
from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.loop import Training
from kdstudy.trainables.settings import ModelSettings, TrainSettings
from kdstudy.trainables.task import Member, Task, Teacher
from kdstudy.trainables.teacher_logits import compute
from kdstudy.trainables.views import resize

SEEDS = {"seed": 1, "view_seed": 7}
LR = 1e-3


@dataclass(frozen=True)
class Size:
    """A preset's models, on random images of the shape of its own. images: of an epoch, fewer than the preset has where
    an epoch would take long."""

    preset: str
    channels: int
    pixels: int
    classes: int
    images: int
    validation: int


SIZES = (Size("digits", 1, 8, 10, 108, 360), Size("cifar100-small", 3, 32, 25, 640, 128))


def task_of(size: Size, **training: Any) -> Task:
    """The task of a preset's student, with a teacher of random weights."""
    config, random = load_study(size.preset), np.random.default_rng(0)

    def images(number: int) -> ImageSet:
        shape = (number, size.channels, size.pixels, size.pixels)
        return ImageSet(random.integers(0, 256, shape).astype(np.uint8), random.integers(0, size.classes, number))

    settings = config.train.model_copy(update={"epochs": 10**6, **training})
    views = config.views.model_copy(update={"count": 4})
    plain = Task(images(size.images), images(size.validation), size.classes, size.pixels, config.student, settings,
                 views, report_every=1, threads=torch.get_num_threads())
    return replace(plain, teacher=Teacher((_random_member(plain, config.teacher.model_settings, settings),)))


def _random_member(task: Task, model: ModelSettings, training: TrainSettings) -> Member:
    weights = {name: tensor.numpy() for name, tensor in task.build_model(model, seed=5).net.state_dict().items()}
    return Member(model, training, weights)


def with_logits(task: Task, device: torch.device) -> Task:
    """The task with its teacher's logits computed beforehand."""
    logits = compute(task.load_teacher(device), partial(task.make_views, view_seed=7, device=device, for_logits=True))
    return replace(task, teacher=replace(task.teacher, logits={7: logits}))


class BareLoop:
    """The plainest loop with the same model, optimizer and batches: no views, no schedule, no losses kept."""

    def __init__(self, task: Task, device: torch.device):
        self.training = start_distillation(task, {"alpha": 0.0, "lr": LR}, **SEEDS)
        self.images = torch.from_numpy(task.train.images).to(device)
        self.labels = torch.from_numpy(task.train.labels).to(device)
        self.size = self.training.model.size

    def epoch(self) -> None:
        training = self.training
        training.model.train()
        order = torch.randperm(len(self.labels), device=self.labels.device)
        for indices in order.split(training.settings.batch_size):
            images = resize(self.images[indices].float() / 255, self.size)
            with torch.autocast(images.device.type, training.autocast, enabled=training.autocast is not None):
                loss = F.cross_entropy(training.model(images), self.labels[indices])
            training.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            training.optimizer.step()


def epochs(size: Size, device: torch.device, seconds: float) -> dict[str, Ratio]:
    """An epoch of the baseline beside the bare loop; an epoch with the teacher's logits stored, one with the teacher in
    the loop, and the evaluation on the validation images beside the baseline's epoch."""
    task = task_of(size)
    stored = with_logits(task, device)
    soft = {"alpha": 0.5, "lr": LR, "temperature": 4.0}
    baseline = start_distillation(task, {"alpha": 0.0, "lr": LR}, **SEEDS)
    plain = {"bare loop": BareLoop(task, device).epoch, "baseline": baseline.train_epoch}
    taught = {"baseline": baseline.train_epoch,
              "logits stored": start_distillation(stored, soft, **SEEDS).train_epoch,
              "teacher in the loop": start_distillation(task, soft, **SEEDS).train_epoch,
              "evaluation": lambda: baseline.validation.report(baseline.result, baseline.autocast)}
    return compare(plain, "bare loop", device, seconds / 3) | compare(taught, "baseline", device, 2 * seconds / 3)


def variants(size: Size, device: torch.device, seconds: float) -> dict[str, Ratio]:
    """An epoch in other precisions and memory formats, and compiled, beside fp32 as it is."""
    changes: dict[str, dict[str, Any]] = {
        "fp32": {"precision": "fp32", "channels_last": "no"}, "bf16": {"precision": "bf16", "channels_last": "no"},
        "fp32, channels last": {"precision": "fp32", "channels_last": "yes"},
        "bf16, channels last": {"precision": "bf16", "channels_last": "yes"}}
    if device.type == "cuda":
        changes["bf16, compiled"] = {"precision": "bf16", "channels_last": "no", "compile": True}
    things: dict[str, Callable[[], Any]] = {}
    for name, change in changes.items():
        training: Training = start_distillation(task_of(size, **change), {"alpha": 0.0, "lr": LR}, **SEEDS)
        things[name] = training.train_epoch
    return compare(things, "fp32", device, seconds)

"""The training loop that all runs share: plain Python, resumable after any epoch, reproducible from its seeds."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import clip_grad_norm_

from kdstudy.trainables import models
from kdstudy.trainables.device import autocast_dtype, move_model
from kdstudy.trainables.evaluator import Evaluator
from kdstudy.trainables.files import CHECKPOINT_MARK, WEIGHTS
from kdstudy.trainables.freezing import body_parameters, hold_statistics
from kdstudy.trainables.losses import LOSSES, USUAL
from kdstudy.trainables.losses.soft import SoftLoss
from kdstudy.trainables.losses.total import Loss, distillation_loss
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.optimizer import current_lr, make_optimizer, make_scheduler, optimizer_state, restore_optimizer
from kdstudy.trainables.reading import reader
from kdstudy.trainables.seeds import derive_seed
from kdstudy.trainables.settings import TrainSettings
from kdstudy.trainables.views import Views

OPTIMIZER_FILE = "optimizer.safetensors"
RAW_WEIGHTS = "raw.safetensors"  # those that are trained, where the model is their average
PROJECTION = "projection.safetensors"  # of the student's features, no part of the student

Batch = tuple[torch.Tensor, torch.Tensor | None]  # indices of its images, and of those for the soft loss alone


class Targets(Protocol):
    """Returns what the loss reads of the teacher, logits (B, C) or features (B, D), for one view of the images at
    `indices` (B,)."""

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Objective:
    """The parts of the loss. The baseline is alpha = 0.

    alpha, loss, parameters: as in `losses.total`. targets: the teacher's logits, or features, for the training images.
    teacher_features: D, where the loss reads features. unlabelled: views of images that only the soft loss uses, with
    the teacher's for them; a batch holds `unlabelled_ratio` of them for each labelled image.
    """

    alpha: float = 0.0
    loss: SoftLoss = LOSSES[USUAL]
    parameters: Mapping[str, float] = field(default_factory=dict)
    targets: Targets | None = None
    teacher_features: int = 0
    unlabelled: Views | None = None
    unlabelled_targets: Targets | None = None
    unlabelled_ratio: float = 0.0


class Training:
    """A model in training.

    train: the views to learn from. validation: the images to report on. seed: determines the order of the images and
    all dropout; the weights come with the model. All random state derives from (seed, epoch), so a run that was saved
    and loaded continues exactly as if it had never been interrupted.
    """

    process: tuple[int, ...] = ()  # of several that train together, which otherwise would drop out alike; () for one

    def __init__(self, model: Classifier, train: Views, validation: Evaluator, settings: TrainSettings, *,
                 lr: float, seed: int, objective: Objective | None = None):
        self.device = train.images.device
        self.settings, self.seed = settings, seed
        self.objective = objective or Objective()
        self.train, self.validation = train, validation
        self.model = move_model(model, settings, self.device)
        self.reader = self.model if self.objective.alpha == 0 else reader(
            self.model, self.objective.loss.reads, self.objective.teacher_features, seed)
        self.forward = torch.compile(self.reader) if settings.compile else self.reader
        self.autocast = autocast_dtype(settings, self.device)
        self.ema = ModelEmaV3(self.model, settings.ema, use_warmup=True) if settings.ema else None
        self.epoch = 0
        parts = batches(torch.arange(len(train)), settings.batch_size)
        self.steps_per_epoch = len(in_groups(parts, settings.accumulate))
        self.lr, self.body = lr, body_parameters(self.model.net) if settings.freeze else []
        self._begin_phase()
        self._seconds = 0.0

    @property
    def projection(self) -> nn.Linear | None:
        """What makes the student's features as wide as the teacher's, if the soft loss reads features of two widths."""
        projection = getattr(self.reader, "projection", None)
        return projection if isinstance(projection, nn.Linear) else None

    def _begin_phase(self) -> None:
        """Make an optimizer for what learns from now on: the head alone at first if the settings say so, then all."""
        for parameter in self.body:
            parameter.requires_grad_(not self.frozen)
        self.optimizer = make_optimizer(self.model, self.settings, self.lr, beside=self.projection)
        self.scheduler = make_scheduler(self.optimizer, self.settings, self.steps_per_epoch)

    @property
    def frozen(self) -> bool:
        """Whether only the head learns in this epoch."""
        return self.settings.freeze == "all" or self.epoch < self.settings.freeze

    @property
    def finished(self) -> bool:
        return self.epoch >= self.settings.epochs

    @property
    def result(self) -> Classifier:
        """The model to evaluate and to keep: the moving average of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self, epochs: int) -> dict[str, float]:
        """Train for up to `epochs` more epochs, evaluate once, and report.

        Stops early if the loss is not finite; the report's train_loss is then that loss. The report holds epoch, the
        metrics of the last `train_epoch`, those of `Evaluator.report`, and seconds, the time in training so far.
        """
        metrics = {}
        for _ in range(min(epochs, self.settings.epochs - self.epoch)):
            metrics = self.train_epoch()
            if not math.isfinite(metrics["train_loss"]):
                break
        report = {"epoch": self.epoch, **metrics, **self.validation.report(self.result, self.autocast)}
        report["seconds"] = self._seconds
        return report

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training images. Returns train_loss, hard_loss and soft_loss (None without a teacher), all
        means over the epoch's images, the last lr, and images_per_second."""
        started = time.perf_counter()
        self.model.train()
        if self.frozen:
            hold_statistics(self.model.net)
        torch.manual_seed(derive_seed(self.seed, self.epoch, 1, *self.process))
        train_loss, hard_loss, soft_loss = self._train_on_batches()
        self.epoch += 1
        seconds = time.perf_counter() - started
        self._seconds += seconds
        metrics = {
            "train_loss": train_loss,
            "hard_loss": hard_loss,
            "soft_loss": soft_loss if self.objective.alpha else None,
            "lr": current_lr(self.optimizer),
            "images_per_second": len(self.train) / seconds,
        }
        if self.epoch == self.settings.freeze:
            self._begin_phase()
        return metrics

    def _train_on_batches(self) -> list[float]:
        """Take the epoch's steps; returns total, hard and soft loss, each the mean over the training images."""
        order = np.random.default_rng(derive_seed(self.seed, self.epoch, 0)).permutation(len(self.train))
        parts = batches(torch.from_numpy(order).to(self.device), self.settings.batch_size)
        pairs = list(zip(parts, self._unlabelled_parts(parts), strict=True))
        sums = [torch.zeros(3, device=self.device)]  # kept on the device: reading each would stall a GPU
        for step, group in enumerate(in_groups(pairs, self.settings.accumulate)):
            losses = self._update(group, self.epoch * self.steps_per_epoch + step)
            for (indices, _), loss in zip(group, losses, strict=True):
                soft = torch.zeros_like(loss.hard) if loss.soft is None else loss.soft
                sums.append(torch.stack([loss.total, loss.hard, soft]).detach() * len(indices))
        return (torch.stack(sums).sum(0) / len(self.train)).tolist()

    def _unlabelled_parts(self, parts: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """The indices of the unlabelled images for each batch of the epoch. All are used before any is used again."""
        objective = self.objective
        if not objective.alpha or objective.unlabelled is None:
            return [None] * len(parts)
        sizes = [round(objective.unlabelled_ratio * len(part)) for part in parts]
        generator = np.random.default_rng(derive_seed(self.seed, self.epoch, 2))
        count = len(objective.unlabelled)
        rounds = math.ceil(sum(sizes) / count)
        order = np.concatenate([generator.permutation(count) for _ in range(rounds)] or [np.arange(0)])
        drawn = torch.from_numpy(order[: sum(sizes)]).to(self.device).split(sizes)
        return [part if len(part) else None for part in drawn]

    def _update(self, group: list[Batch], before: int) -> list[Loss]:
        """Update the weights once, from the batches of a group as if they were one. before: the number of updates."""
        self.scheduler.step_update(before)
        self.optimizer.zero_grad(set_to_none=True)
        images = sum(len(indices) for indices, _ in group)
        losses = [self._backward(batch, len(batch[0]) / images, last=batch is group[-1]) for batch in group]
        if self.settings.clip_grad:
            clip_grad_norm_(self.reader.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, before + 1)
        return losses

    def _backward(self, batch: Batch, share: float, last: bool) -> Loss:
        """Add a batch's gradients, weighted by its share of the update's labelled images. last: of these batches."""
        loss = self._loss(*batch)
        (loss.total * share).backward()
        return loss

    def _loss(self, indices: torch.Tensor, unlabelled: torch.Tensor | None) -> Loss:
        objective = self.objective
        batch = self.train.batch(self.epoch, indices)
        images = batch.images
        teacher = objective.targets(self.epoch, indices) if objective.alpha and objective.targets else None
        if unlabelled is not None:
            images = torch.cat([images, objective.unlabelled.batch(self.epoch, unlabelled).images])
            teacher = torch.cat([teacher, objective.unlabelled_targets(self.epoch, unlabelled)])
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            returned = self.forward(images)
        logits, compared = (returned, None) if self.reader is self.model else returned
        return distillation_loss(
            logits[: len(indices)], batch.labels, teacher, alpha=objective.alpha, loss=objective.loss,
            parameters=objective.parameters, partner_labels=batch.partner_labels,
            partner_weight=batch.partner_weight, label_smoothing=self.settings.label_smoothing,
            unlabelled_logits=None if unlabelled is None else logits[len(indices):], compared=compared,
        )

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and epoch as safetensors and JSON: loading them runs no code."""
        models.save_weights(self.result, folder / WEIGHTS)
        if self.ema is not None:
            models.save_weights(self.model, folder / RAW_WEIGHTS)
        if self.projection is not None:
            save_file(self.projection.state_dict(), folder / PROJECTION)
        tensors, scalars = optimizer_state(self.optimizer)
        save_file(tensors, folder / OPTIMIZER_FILE)
        state = {"epoch": self.epoch, "seconds": self._seconds, "optimizer": scalars}
        (folder / CHECKPOINT_MARK).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from a folder that `save` wrote. Raises ValueError, OSError or KeyError, or what safetensors and
        torch raise, if it is incomplete or damaged."""
        state = json.loads((folder / CHECKPOINT_MARK).read_text())
        models.load_weights(self.result, folder / WEIGHTS)
        if self.ema is not None:
            models.load_weights(self.model, folder / RAW_WEIGHTS)
        if self.projection is not None:
            self.projection.load_state_dict(load_file(folder / PROJECTION))
        self.epoch, self._seconds = state["epoch"], state["seconds"]
        if self.settings.freeze:
            self._begin_phase()
        restore_optimizer(self.optimizer, load_file(folder / OPTIMIZER_FILE), state["optimizer"])


def batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut an epoch's order (N,) into batches. A last batch of one joins the one before, as batch norm needs two."""
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 and batch_size > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def in_groups(items: list, size: int) -> list[list]:
    """Cut a list into groups of `size`; the last may be smaller."""
    return [items[start:start + size] for start in range(0, len(items), size)]

"""One training run: plain Python, resumable after any epoch, the same on every call with the same seeds."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from kdstudy.trainables import models
from kdstudy.trainables.data import ImageSet
from kdstudy.trainables.files import CHECKPOINT_MARK, WEIGHTS
from kdstudy.trainables.losses import Loss, distillation_loss
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.seeds import derive_seed
from kdstudy.trainables.settings import TrainSettings
from kdstudy.trainables.views import RENDER_AHEAD_BYTES, Views, resize

# Without gradients; small ones stay in a CPU's cache.
EVALUATION_BATCH = {"cuda": 512, "cpu": 64}
# torch's own optimizers of these names have a fused kernel: one call a step instead of one per tensor.
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


class Targets(Protocol):
    """Whatever answers with the teacher's logits (B, C) for a view of the images at `indices` (B,)."""

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Objective:
    """What the loss is made of. The baseline is alpha = 0.

    unlabelled: views of images that only the soft loss sees, `unlabelled_ratio` beside each labelled one in a batch.
    """

    temperature: float = 1.0
    alpha: float = 0.0
    targets: Targets | None = None
    unlabelled: Views | None = None
    unlabelled_targets: Targets | None = None
    unlabelled_ratio: float = 0.0


class Training:
    """A model being trained. `seed` decides the order of the images and any dropout; weights come with the model.

    train: the views to learn from; validation: images to report on. All random state derives from (seed, epoch), so a
    run that was saved and loaded continues exactly as it would have gone on.
    """

    def __init__(self, model: Classifier, train: Views, validation: "Evaluator", settings: TrainSettings, *,
                 lr: float, seed: int, objective: Objective | None = None):
        self.device = train.images.device
        self.settings, self.seed = settings, seed
        self.objective = objective or Objective()
        self.train, self.validation = train, validation
        self.model = place(model, settings, self.device)
        self.forward = torch.compile(self.model) if settings.compile else self.model
        self.autocast = autocast_dtype(settings, self.device)
        self.epoch = 0
        self.steps_per_epoch = len(batches(torch.arange(len(train)), settings.batch_size))
        self.optimizer = make_optimizer(self.model, settings, lr)
        self.scheduler = make_scheduler(self.optimizer, settings, self.steps_per_epoch)
        self._seconds = 0.0

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training images. Returns train_loss, hard_loss, soft_loss (None without a teacher), lr,
        images_per_second; the losses are means over the epoch's images."""
        started = time.perf_counter()
        self.model.train()
        torch.manual_seed(derive_seed(self.seed, self.epoch, 1))
        order = np.random.default_rng(derive_seed(self.seed, self.epoch, 0)).permutation(len(self.train))
        order = torch.from_numpy(order).to(self.device)
        parts = batches(order, self.settings.batch_size)
        sums = [torch.zeros(3, device=self.device)]
        for step, (indices, unlabelled) in enumerate(zip(parts, self._unlabelled_parts(parts), strict=True)):
            self.scheduler.step_update(self.epoch * self.steps_per_epoch + step)
            loss = self._step(indices, unlabelled)
            soft = torch.zeros_like(loss.hard) if loss.soft is None else loss.soft
            sums.append(torch.stack([loss.total, loss.hard, soft]).detach() * len(indices))
        totals = (torch.stack(sums).sum(0) / len(self.train)).tolist()
        self.epoch += 1
        self._seconds += time.perf_counter() - started
        return {
            "train_loss": totals[0],
            "hard_loss": totals[1],
            "soft_loss": totals[2] if self.objective.alpha else None,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(self.train) / (time.perf_counter() - started),
        }

    def _unlabelled_parts(self, parts: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """Which unlabelled images come beside each of the epoch's batches; all of them before any comes again."""
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

    def _step(self, indices: torch.Tensor, unlabelled: torch.Tensor | None) -> Loss:
        loss = self._loss(indices, unlabelled)
        self._update(loss.total)
        return loss

    def _loss(self, indices: torch.Tensor, unlabelled: torch.Tensor | None) -> Loss:
        objective = self.objective
        batch = self.train.batch(self.epoch, indices)
        images = batch.images
        teacher_logits = objective.targets(self.epoch, indices) if objective.alpha and objective.targets else None
        if unlabelled is not None:
            images = torch.cat([images, objective.unlabelled.batch(self.epoch, unlabelled).images])
            teacher_logits = torch.cat([teacher_logits, objective.unlabelled_targets(self.epoch, unlabelled)])
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.forward(images)
        return distillation_loss(
            logits[: len(indices)], batch.labels, teacher_logits, temperature=objective.temperature,
            alpha=objective.alpha, partner_labels=batch.partner_labels, partner_weight=batch.partner_weight,
            unlabelled_logits=None if unlabelled is None else logits[len(indices):],
        )

    def _update(self, total: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()

    def run(self, epochs: int) -> dict[str, float]:
        """Train for up to `epochs` more epochs, evaluate once, and report.

        Stops early at a loss that is not finite; the report's train_loss then is what was seen.
        """
        metrics = {}
        for _ in range(min(epochs, self.settings.epochs - self.epoch)):
            metrics = self.train_epoch()
            if not math.isfinite(metrics["train_loss"]):
                break
        report = {"epoch": self.epoch, **metrics, **self.validation.report(self.model, self.autocast)}
        report["seconds"] = self._seconds
        return report

    @property
    def finished(self) -> bool:
        return self.epoch >= self.settings.epochs

    def save(self, folder: Path) -> None:
        """Write model, optimizer and position: safetensors and JSON, nothing that runs code when it is loaded."""
        models.save_weights(self.model, folder / WEIGHTS)
        tensors, scalars = _flatten_optimizer(self.optimizer)
        save_file(tensors, folder / "optimizer.safetensors")
        state = {"epoch": self.epoch, "seconds": self._seconds, "optimizer": scalars}
        (folder / CHECKPOINT_MARK).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from a folder that `save` wrote."""
        state = json.loads((folder / CHECKPOINT_MARK).read_text())
        models.load_weights(self.model, folder / WEIGHTS)
        _unflatten_optimizer(self.optimizer, load_file(folder / "optimizer.safetensors"), state["optimizer"])
        self.epoch, self._seconds = state["epoch"], state["seconds"]


class Evaluator:
    """Images to report on, brought to the model's size once where they fit, and what the teacher says of them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, size: int,
                 teacher_predictions: torch.Tensor | None = None):
        self.images, self.labels, self.size = images, labels, size
        self.teacher_predictions = teacher_predictions
        fits = len(labels) * images.shape[1] * size**2 * 4 <= RENDER_AHEAD_BYTES
        self._ready = resize(images.float() / 255, size) if fits else None

    @torch.no_grad()
    def logits(self, model: Classifier, autocast: torch.dtype | None = None) -> torch.Tensor:
        """The model's logits (N, C) in fp32, in evaluation mode."""
        model.eval()
        parts = []
        size = evaluation_batch(self.images.device)
        for start in range(0, len(self.labels), size):
            rows = slice(start, start + size)
            images = self._images(rows)
            with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
                parts.append(model(images).float())
        return torch.cat(parts)

    def _images(self, rows: slice) -> torch.Tensor:
        return resize(self.images[rows].float() / 255, self.size) if self._ready is None else self._ready[rows]

    def report(self, model: Classifier, autocast: torch.dtype | None = None) -> dict[str, float]:
        """validation_accuracy (0..1), validation_loss and, with a teacher, agreement: how often both say the same."""
        logits = self.logits(model, autocast)
        predictions = logits.argmax(1)
        report = {
            "validation_accuracy": (predictions == self.labels).double().mean().item(),
            "validation_loss": F.cross_entropy(logits, self.labels).item(),
        }
        if self.teacher_predictions is not None:
            report["agreement"] = (predictions == self.teacher_predictions).double().mean().item()
        return report


def evaluation_batch(device: torch.device) -> int:
    return EVALUATION_BATCH.get(device.type, EVALUATION_BATCH["cpu"])


def batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut an epoch's order into batches. A last batch of one joins the one before: batch norm needs two values."""
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1 and batch_size > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def to_device(images: ImageSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as tensors, without a copy where they already lie on the device."""
    return read_only_tensor(images.images).to(device), read_only_tensor(images.labels).to(device)


def read_only_tensor(array: np.ndarray) -> torch.Tensor:
    """Wrap an array from Ray's object store, which is read-only, without copying it. Nobody may write to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(model: Classifier, settings: TrainSettings, device: torch.device) -> Classifier:
    """Bring a model to the device, in the memory format that pays for it."""
    last = settings.channels_last == "yes" or (settings.channels_last == "auto" and models.wants_channels_last(model))
    return model.to(device, memory_format=torch.channels_last if last else torch.preserve_format)


def autocast_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype | None:
    """bf16 on GPUs that have it; on CPUs it is slower than fp32, so only where it is asked for."""
    if settings.precision == "bf16":
        return torch.bfloat16
    automatic = settings.precision == "auto" and device.type == "cuda"
    return torch.bfloat16 if automatic and torch.cuda.is_bf16_supported(including_emulation=False) else None


def make_optimizer(model: Classifier, settings: TrainSettings, lr: float) -> torch.optim.Optimizer:
    fused = {"fused": True} if settings.optimizer.lower() in FUSED_OPTIMIZERS else {}
    return create_optimizer_v2(model.net, settings.optimizer, lr=lr, weight_decay=settings.weight_decay, **fused)


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine to zero over all epochs, whatever a scheduler may stop before."""
    warmup = round(settings.warmup * settings.epochs * steps)
    return CosineLRScheduler(optimizer, t_initial=max(2, settings.epochs * steps - warmup), warmup_t=warmup,
                             warmup_prefix=True, t_in_epochs=False)


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state and settings as named tensors and, for the rest, JSON.

    Settings that are neither, such as a dtype, come with the new optimizer.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    entries = [(f"state.{parameter}", values) for parameter, values in state["state"].items()]
    entries += [(f"group.{index}", group) for index, group in enumerate(state["param_groups"])]
    for prefix, values in entries:
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"{prefix}.{name}"] = value.contiguous()
            elif name != "params" and isinstance(value, (bool, int, float, str, list, tuple, type(None))):
                scalars[f"{prefix}.{name}"] = value
    return tensors, scalars


def _unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], scalars: dict) -> None:
    state = optimizer.state_dict()
    values: dict[int, dict] = {}
    for key, value in {**tensors, **scalars}.items():
        kind, number, name = key.split(".", 2)
        target = values.setdefault(int(number), {}) if kind == "state" else state["param_groups"][int(number)]
        target[name] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict({"state": values, "param_groups": state["param_groups"]})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            # Fused kernels walk raw memory: a moment must lie in memory as its parameter does (channels last).
            if torch.is_tensor(value) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_optimizer(name: str) -> None:
    """See whether an optimizer can take a step and be saved. Raises ValueError with the reason."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    try:
        optimizer = make_optimizer(Classifier(layers, (0.5,), (0.5,), 1), TrainSettings(optimizer=name), 1e-3)
        layers(torch.zeros(1, 1, 1, 1)).sum().backward()
        optimizer.step()
        tensors, scalars = _flatten_optimizer(optimizer)
        json.dumps(scalars)
        _unflatten_optimizer(optimizer, tensors, scalars)
    except Exception as error:
        raise ValueError(one_line(error)) from None

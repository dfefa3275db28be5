"""Temperature scaling of a model that leaves the study: one number by which all logits are divided, fitted on the
validation images (Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017).

It is no distillation temperature. It changes no prediction, only how sure they are.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, special
from torch import nn

from kdstudy.analysis.predictions import calibration_error, likelihood_loss
from kdstudy.errors import UserError
from kdstudy.export.average import MeanOfLogits
from kdstudy.export.formats.base import Deployable
from kdstudy.trainables import models

BOUNDS = (0.05, 20.0)  # of the temperature
CHECKED = 64  # images on which the scaled model is compared with the scaled logits
TOLERANCE = 1e-3  # of that comparison, as a share of the logits' standard deviation


@dataclass(frozen=True)
class Scores:
    """calibration_error: the expected calibration error, a share, 0 to 1, in 15 bins. nll: the negative log-likelihood
    per image, in nats."""

    calibration_error: float
    nll: float

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> "Scores":
        """Of logits (N, classes) divided by the temperature, for images with these labels (N,)."""
        confidence = special.softmax(logits.astype(np.float64) / temperature, axis=1).max(1)
        return cls(calibration_error(confidence, logits.argmax(1) == labels) / 100,
                   likelihood_loss(logits, labels, temperature))


@dataclass(frozen=True)
class Scaling:
    """A fitted temperature. fitted_on: the number of validation images. validation, test: the scores of these images,
    before and after."""

    temperature: float
    fitted_on: int
    validation: tuple[Scores, Scores]
    test: tuple[Scores, Scores]

    def as_dict(self) -> dict[str, Any]:
        before_and_after = {name: dict(zip(("before", "after"), map(asdict, getattr(self, name)), strict=True))
                            for name in ("validation", "test")}
        return {"temperature": self.temperature, "fitted_on": self.fitted_on, **before_and_after}


def scale(deployable: Deployable, test_logits: np.ndarray) -> Scaling:
    """Fit a temperature on the study's validation images, and build it into the model's last layer.

    test_logits: the model's own, (N, classes), which decide nothing. Afterwards its logits are these divided by the
    temperature. Raises UserError if the images settle no temperature, or the model has no last layer to scale.
    """
    splits, model = deployable.splits, deployable.model
    known = deployable.logits(splits.validation)
    temperature = fit_temperature(known, splits.validation.labels)
    if temperature is None:
        right = (known.argmax(1) == splits.validation.labels).mean()
        raise UserError(f"--calibrate: the {len(known)} validation images settle no temperature ({100 * right:.1f} % "
                        "are predicted correctly), so there is nothing to calibrate by; leave it out, or set aside "
                        "more images with data.validation")
    for one in model.models if isinstance(model, MeanOfLogits) else [model]:
        for layer in _last_layers(one.net, known.shape[1]):
            _divide(layer, temperature)
    few = splits.validation.take(np.arange(min(CHECKED, len(known))))
    difference = np.abs(deployable.logits(few) - known[:len(few)] / temperature).max()
    if not difference <= TOLERANCE * known.std() / temperature:
        raise UserError(f"--calibrate: the logits of {deployable.settings.model} do not scale with its last layer; "
                        "leave it out, and divide them by a temperature where you use them")
    scores = {name: tuple(Scores.of(logits, labels, divisor) for divisor in (1.0, temperature))
              for name, logits, labels in (("validation", known, splits.validation.labels),
                                           ("test", test_logits, splits.test.labels))}
    return Scaling(temperature, len(known), **scores)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature by which logits (N, classes) must be divided so that labels (N,) are most likely.

    The likelihood is concave in 1 / T, so it has one maximum, which is sought in log T. None where that is at an end of
    BOUNDS: if all labels are predicted, for example, no T is small enough.
    """
    ends = tuple(map(math.log, BOUNDS))
    found = optimize.minimize_scalar(lambda log: likelihood_loss(logits, labels, math.exp(log)), bounds=ends,
                                     method="bounded", options={"xatol": 1e-6})
    inside = ends[0] + 1e-3 < found.x < ends[1] - 1e-3
    return math.exp(found.x) if inside else None


def _last_layers(net: nn.Module, classes: int) -> list[nn.Module]:
    """The layers that return logits: several where a model averages its heads; of a model that does not tell, the last
    linear layer with so many outputs. `scale` sees whether they are the right ones."""
    layers = {name: module for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    head = models.head_names(net)
    named = [module for name, module in layers.items() if f"{name}.weight" in head and _outputs(module) == classes]
    return named or [module for module in layers.values() if _outputs(module) == classes][-1:]


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


@torch.no_grad()
def _divide(layer: nn.Module, temperature: float) -> None:
    for parameter in layer.parameters():
        parameter.div_(temperature)

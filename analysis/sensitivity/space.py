"""The searched parameters: their ranges, and each on its own scale from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.study_files import StudyFiles


@dataclass(frozen=True)
class Dimension:
    """One searched parameter: `{"log": [low, high]}`, `{"linear": [low, high]}` or `{"choice": [...]}`."""

    name: str
    kind: str
    values: tuple[Any, ...]  # low and high, or the choices

    @classmethod
    def of(cls, name: str, described: dict[str, Any]) -> Dimension:
        (kind, values), = described.items()
        return cls(name, kind, tuple(values))

    @property
    def columns(self) -> int:
        return len(self.values) if self.kind == "choice" else 1

    def contains(self, value: Any) -> bool:
        return value in self.values if self.kind == "choice" else self.values[0] <= value <= self.values[1]

    def unit(self, values: Sequence[Any]) -> np.ndarray:
        """(n,) values to (n, columns): 0 at the low bound, 1 at the high one, even on the parameter's own scale.

        A choice becomes a column per value; two different choices lie 1 apart.
        """
        if self.kind == "choice":
            return np.array([[value == choice for choice in self.values] for value in values]) / math.sqrt(2)
        scale = np.log if self.kind == "log" else np.asarray
        low, high = scale(np.array(self.values, dtype=float))
        return ((scale(np.asarray(values, dtype=float)) - low) / (high - low))[:, None]

    def at(self, unit: np.ndarray) -> list[Any]:
        """The values at places 0 to 1 of the range; choices share it equally."""
        if self.kind == "choice":
            return [self.values[min(int(place * len(self.values)), len(self.values) - 1)] for place in unit]
        low, high = map(float, self.values)
        return [float(low * (high / low) ** u if self.kind == "log" else low + u * (high - low)) for u in unit]

    def axis(self, count: int, also: Any) -> list[Any]:
        """About `count` values from bound to bound, `also` among them; a choice gives all of its values."""
        if self.kind == "choice":
            return list(self.values)
        places = np.linspace(0, 1, count)
        if also is not None:
            # The default replaces the nearest inner value, so that the grid does not grow.
            place = float(np.clip(self.unit([also])[0, 0], 0, 1))
            nearest = int(np.argmin(abs(places - place)))
            if count > 2 and 0 < place < 1:
                nearest = min(max(nearest, 1), count - 2)
            places[nearest] = place
        return self.at(places)

    def weights(self, axis: Sequence[Any]) -> np.ndarray:
        """The share of the range that each value of an axis stands for."""
        if self.kind == "choice" or len(axis) == 1:
            return np.full(len(axis), 1 / len(axis))
        places = self.unit(axis)[:, 0]
        borders = np.concatenate([[places[0]], (places[1:] + places[:-1]) / 2, [places[-1]]])
        return np.diff(borders) / (places[-1] - places[0])


def space_of(study: StudyFiles, arm: str, loss: str | None = None) -> dict[str, Dimension]:
    """The parameters that an arm, `baseline` or `distill`, searches; with a loss, those that its trials have."""
    searched = study.config.get("search", {})
    names = [name for name in study.parameter_names if isinstance(searched.get(name), dict)
             and (arm == "distill" or name not in study.of_distillation)]
    if loss is not None:
        trials = trials_of_loss(study, loss)
        names = [name for name in names if name != "loss" and trials[name].notna().any()]
    return {name: Dimension.of(name, searched[name]) for name in names}


def losses_of(study: StudyFiles) -> tuple[str, ...]:
    """The losses that the distillation chooses from; none where it searches no loss."""
    space = space_of(study, "distill")
    return space["loss"].values if "loss" in space else ()


def trials_of_loss(study: StudyFiles, loss: str) -> pd.DataFrame:
    """The distillation's trials with a loss."""
    return study.trials[(study.trials["stage"] == "distill") & (study.trials.get("loss") == loss)]


def unlike_losses(study: StudyFiles) -> tuple[str, ...]:
    """The losses, where their trials do not all have the same parameters, so that each has a space of its own."""
    spaces = {loss: tuple(space_of(study, "distill", loss)) for loss in losses_of(study)
              if len(trials_of_loss(study, loss))}
    return losses_of(study) if len(set(spaces.values())) > 1 else ()


def default_of_loss(study: StudyFiles, space: dict[str, Dimension]) -> dict[str, Any]:
    """The default point in the space of a loss: where the default point has another one, the defaults of its parameters
    as far as they are in their ranges."""
    known = study.config.get("default", {}) | default_point(study)
    return {name: known[name] for name, dimension in space.items()
            if name in known and dimension.contains(known[name])}


def default_point(study: StudyFiles) -> dict[str, Any]:
    """The parameters of trial 0 of the distillation, or of the baseline while the former has none."""
    trials = study.trials[(study.trials["stage"] == "distill") & (study.trials["trial"] == 0)]
    if trials.empty:
        trials = study.trials[(study.trials["stage"] == "baseline") & (study.trials["trial"] == 0)]
    row = trials.iloc[0] if len(trials) else {}
    return {name: row[name] for name in study.parameter_names if name in row and pd.notna(row[name])}

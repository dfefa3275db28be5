"""Estimate the cost of each stage: runs, epochs, floating-point operations and, where known, seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch

from kdstudy.analysis.stage_names import kind_of
from kdstudy.planning.forecast import Work
from kdstudy.stages.base import Stage, Workload
from kdstudy.stages.context import Context
from kdstudy.study import Study
from kdstudy.trainables import models
from kdstudy.trainables.models import cost
from kdstudy.trainables.settings import ModelSettings
from kdstudy.trainables.task import start

MEASURED_STEPS = 3
MEASURED_BATCH = 32


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage.

    flop_per_image: floating-point operations. seconds: per epoch, reports included, or None if unknown. estimated:
    whether the seconds are derived from the operations. overhead: seconds per trial outside its epochs. took: seconds,
    if the stage is done. retries: whether a run would nevertheless try failed trials again.
    """

    name: str
    needs: tuple[str, ...]
    load: Workload
    flop_per_image: float
    seconds: float | None
    overhead: float
    estimated: bool
    took: float | None = None
    retries: bool = False

    @property
    def done(self) -> bool:
        return self.took is not None

    def work(self) -> Work:
        """Return the input of the forecast. If seconds are unknown, the number of operations replaces them."""
        load = self.load
        seconds = load.images * self.flop_per_image if self.seconds is None else self.seconds
        if load.parallel:
            return Work(self.name, load.runs, load.protected, load.epochs, load.rungs, seconds, self.overhead,
                        needs=self.needs, parallel=load.parallel)
        return Work(self.name, load.runs, load.runs, 1, (), seconds * load.epochs, self.overhead, load.workers,
                    self.needs)

    def flop(self, epochs: float) -> float:
        return epochs * self.load.images * self.flop_per_image


@dataclass(frozen=True)
class Pace:
    """Seconds per epoch, and seconds per trial outside its epochs."""

    epoch: float
    overhead: float = 0.0


def make_plan(study: Study, measure: bool = False, flop_rate: float | None = None,
              only_gpu: bool = False) -> list[StagePlan]:
    """Return the plan of each stage that trains or evaluates models.

    Seconds per epoch come from the study's own records if there are any, else from a few timed steps if `measure`, else
    from the assumed `flop_rate` (operations per second), else they are None. only_gpu: ignore records of trials that
    did not run on GPUs."""
    loads = {name: stage.workload() for name, stage in study.stages.items()}
    paces = _paces(study, loads, measure, flop_rate, only_gpu)
    known = paces.get("baseline") or paces.get("distill")
    overhead, sizes = known.overhead if known else 0.0, ModelSizes.of(study.context)
    return [_stage_plan(stage, loads[name], paces.get(name), overhead, sizes, flop_rate)
            for name, stage in study.stages.items()]


def _stage_plan(stage: Stage, load: Workload, pace: Pace | None, overhead: float, sizes: ModelSizes,
                flop_rate: float | None) -> StagePlan:
    if not load.runs:
        pace = Pace(0.0)
    flop = load.passes * sum(map(sizes.forward_flop, load.models))
    estimated = bool(flop_rate) and not pace
    seconds = load.images * flop / flop_rate / load.workers if estimated else pace and pace.epoch
    took = stage.folder.done["seconds"] if stage.is_finished else None
    retries = stage.is_finished and stage.may_improve(stage.folder)
    return StagePlan(stage.name, stage.waits_for, load, flop, seconds, overhead, estimated, took, retries)


# -- models -----------------------------------------------------------------------------------------------------------


class ModelSizes:
    """The computing costs of a study's models. Each model is built once, without allocating its weights."""

    _known: ClassVar[WeakKeyDictionary[Context, ModelSizes]] = WeakKeyDictionary()

    @classmethod
    def of(cls, context: Context) -> ModelSizes:
        """Return the same object each time, so that the plan and the preflight build each model once."""
        if context not in cls._known:
            cls._known[context] = cls(context.shape)
        return cls._known[context]

    def __init__(self, shape: dict[str, int]):
        self._shape = shape  # classes, channels and image_size, as every model must support them
        self._built: dict[str, models.Classifier] = {}
        self._flop: dict[str, float] = {}

    def parameters(self, settings: ModelSettings) -> int:
        return self._model(settings).parameter_count

    def image_size(self, settings: ModelSettings) -> int:
        """Return the input size of a model in pixels."""
        return self._model(settings).size

    def normalisation(self, settings: ModelSettings) -> str:
        """Return the mean and std of a model's images in words."""
        model = self._model(settings)
        return models.show_normalisation(model.mean, model.std)

    def forward_flop(self, settings: ModelSettings) -> float:
        """Return the floating-point operations of a forward pass of one image; a multiply-add counts as two."""
        key = settings.model_dump_json()
        if key not in self._flop:
            self._flop[key] = cost.forward_flop(self._model(settings), self._shape["channels"])
        return self._flop[key]

    def _model(self, settings: ModelSettings) -> models.Classifier:
        key = settings.model_dump_json()
        if key not in self._built:
            self._built[key] = cost.without_weights(settings, **self._shape)
        return self._built[key]


# -- seconds ----------------------------------------------------------------------------------------------------------


def _paces(study: Study, loads: dict[str, Workload], measure: bool, flop_rate: float | None,
           only_gpu: bool) -> dict[str, Pace]:
    """Return the known paces by stage: from the stage's record, else from timed steps if `measure`, else from a stage
    that trains the same model."""
    paces = {name: pace for name, stage in study.stages.items() if (pace := _recorded_pace(stage, only_gpu))}
    for name in [name for name in loads if kind_of(name) in ("teacher", "baseline")] if measure else ():
        if name not in paces and loads[name].runs:
            paces[name] = Pace(_measure(study.stages[name]) / loads[name].workers)
    known = dict(paces)
    for name, load in loads.items():
        # For inference, the number of operations predicts better than the pace of training.
        stand_ins = load.paced_by if load.passes > 1 or not flop_rate else {}
        for other, factor in stand_ins.items():
            if name not in paces and other in known:
                paces[name] = Pace(known[other].epoch * factor, known[other].overhead)
    return paces


def _recorded_pace(stage: Stage, only_gpu: bool) -> Pace | None:
    """Return the medians, over the recorded trials, of the time between reports and of a trial's other time."""
    folder = stage.known_folder
    if folder is None or not folder.record_path.exists():
        return None
    trials = [trial for trial in folder.read_record().trials.values() if trial.reports
              and not (only_gpu and " gpu " not in (trial.where or ""))]
    if not stage.scored:  # a chunk of logits reports once, and its views count as epochs
        views = [(trial.reports[0]["time"] - trial.begun) / trial.parameters["view_count"] for trial in trials
                 if trial.parameters["view_count"]]
        return Pace(statistics.median(views)) if views else None
    paces = [(after["time"] - before["time"]) / (after["epoch"] - before["epoch"]) for trial in trials
             for before, after in pairwise(trial.reports) if after["epoch"] > before["epoch"]]
    if not paces:
        return None
    pace = statistics.median(paces)
    besides = [trial.reports[0]["time"] - trial.begun - pace * trial.reports[0]["epoch"] for trial in trials]
    return Pace(pace, max(0.0, statistics.median(besides)))


def _measure(stage: Stage) -> float:
    """Time a few steps on a few images here. Returns seconds per epoch, reports included."""
    task = stage.task()
    few = task.train.take(torch.arange(min(MEASURED_BATCH, len(task.train), task.training.batch_size)).numpy())
    seen = task.validation.take(torch.arange(min(MEASURED_BATCH, len(task.validation))).numpy())
    whole = {} if task.training.freeze == "all" else {"freeze": 0}  # most epochs train all weights
    training = start(replace(task, train=few, validation=seen), {"lr": 1e-4, **whole}, seed=0, view_seed=0)
    training.run(1)
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        training.train_epoch()
    trained = time.perf_counter()
    training.validation.report(training.result, training.autocast)
    reported = (time.perf_counter() - trained) / len(seen) * len(task.validation)
    return (trained - started) / MEASURED_STEPS / len(few) * len(task.train) + reported / task.report_every

"""The search: which trial next (Optuna), go on or stop (ASHA), and both of them told the truth.

`TrialBook` decides and records; it knows nothing of Ray's actors, so that tests and simulations can drive it. The
classes below it hand its decisions to Ray Tune.
"""

import contextlib
import math
import os
import sqlite3
import warnings
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy.stats import qmc
from sqlalchemy.pool import StaticPool

from study.config import Range, StudyConfig
from study.record import METRIC, Record, TrialState
from trainables.paths import remove
from trainables.seeds import small_seed

ASKED_AGAIN = 4  # times, where TPE proposes a point that is known
OPTUNA_STATES = {
    "complete": OptunaState.COMPLETE,
    "stopped": OptunaState.PRUNED,
    "failed": OptunaState.FAIL,
    "running": OptunaState.RUNNING,
}
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


# ---------------------------------------------------------------------------------------------------------------------
# What to try


class Proposer(Protocol):
    """Says what to run: trial `number` given all that is recorded, or None where there is nothing left to run."""

    protected: int  # how many of the first trials are never stopped

    def __call__(self, number: int, record: Record) -> TrialState | None: ...

    def total(self, record: Record) -> int:
        """How many trials there will be in the end."""
        ...


@dataclass(frozen=True)
class OptunaProposer:
    """The default point, then scrambled-Sobol points (both protected), then Optuna's TPE, which also knows the record's
    prior trials.

    Nothing is kept between calls: a proposal is a function of (settings, trial number, record), so a search that was
    cut off goes on as it would have.
    """

    space: dict[str, Range]
    default: dict[str, Any]
    trials: int
    protected: int
    seed: int
    arm: str
    concurrent: int = 1

    @classmethod
    def of(cls, config: StudyConfig, arm: str, concurrent: int) -> "OptunaProposer":
        return cls(config.space(arm), config.default_parameters(arm), config.trials(arm), config.protected(arm),
                   config.seed, arm, concurrent)

    def __call__(self, number: int, record: Record) -> TrialState | None:
        if number >= self.trials:
            return None
        origin = "default" if number == 0 else "sobol" if number <= self.protected else "tpe"
        parameters = self.default | self._parameters(number, record)
        return TrialState(number, parameters, seed=small_seed(self.seed, self.arm, number),
                          view_seed=search_view_seed(self.seed), origin=origin, protected=origin != "tpe")

    def total(self, record: Record) -> int:
        return max(self.trials, len(record.trials))

    def _parameters(self, number: int, record: Record) -> dict[str, Any]:
        if number == 0:
            return {}
        if number <= self.protected:
            return sobol_points(self.space, self.protected, small_seed(self.seed, self.arm, "sobol"))[number - 1]
        return self._new_point(number, [*record.prior, *record.trials.values()])

    def _new_point(self, number: int, known: list[TrialState]) -> dict[str, Any]:
        """TPE's proposal. In a space of choices it comes back to points that are known: then it is asked again, and at
        last another point drawn, as long as there are others."""
        told, seen = frozen_trials(self.space, known), {self._key(trial.parameters) for trial in known}
        point = self._ask(told, number)
        for attempt in range(1, ASKED_AGAIN + 1):
            if self._key(point) not in seen or self._is_explored(seen):
                return point
            point = self._ask(told, number, attempt)
        random = np.random.default_rng(small_seed(self.seed, self.arm, "new", number))
        while self._key(point) in seen:
            point = {name: _from_unit(dimension, random.random()) for name, dimension in self.space.items()}
        return point

    def _ask(self, told: list[FrozenTrial], *seeds: int) -> dict[str, Any]:
        # TPE must be able to model once the protected trials are in; those still running then do not count.
        startup = max(1, self.protected + 2 - self.concurrent)
        sampler = optuna.samplers.TPESampler(seed=small_seed(self.seed, self.arm, "tpe", *seeds), multivariate=True,
                                             constant_liar=True, n_startup_trials=startup)
        study = optuna.create_study(storage=_Told(told), direction="maximize", sampler=sampler)
        return study.ask(distributions(self.space)).params

    def _key(self, parameters: dict[str, Any]) -> tuple:
        return tuple(parameters[name] for name in self.space)

    def _is_explored(self, seen: set[tuple]) -> bool:
        """Whether there is no point left that has not been proposed."""
        choices = [dimension.choice for dimension in self.space.values()]
        return None not in choices and len(seen) >= math.prod(map(len, choices))


@dataclass(frozen=True)
class ListProposer:
    """Exactly these trials, each of them recognised by what it runs: those on record are not run again."""

    wanted: tuple[TrialState, ...]

    def __call__(self, number: int, record: Record) -> TrialState | None:
        for trial in self._missing(record):
            return replace(trial, number=number)
        return None

    def total(self, record: Record) -> int:
        return len(record.trials) + len(self._missing(record))

    @property
    def protected(self) -> int:
        return len(self.wanted)

    def _missing(self, record: Record) -> list[TrialState]:
        known = {run_key(trial) for trial in record.trials.values()}
        return [trial for trial in self.wanted if run_key(trial) not in known]


def run_key(trial: TrialState) -> tuple:
    """What makes two runs the same run."""
    return (tuple(sorted(trial.parameters.items())), trial.seed, trial.view_seed)


def search_view_seed(seed: int) -> int:
    """All search trials see the same views, so one cache of teacher logits serves them."""
    return small_seed(seed, "search views")


def sobol_points(space: dict[str, Range], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` scrambled-Sobol points, spread over the space on each dimension's own scale."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The balance properties of Sobol")
        unit = qmc.Sobol(d=len(space), scramble=True, rng=seed).random(count)
    return [{name: _from_unit(space[name], u) for name, u in zip(space, point, strict=True)} for point in unit]


def _from_unit(dimension: Range, u: float) -> Any:
    if dimension.choice is not None:
        return dimension.choice[min(int(u * len(dimension.choice)), len(dimension.choice) - 1)]
    low, high = dimension.bounds
    value = low * (high / low) ** u if dimension.log else low + u * (high - low)
    return float(min(max(value, low), high))


def distributions(space: dict[str, Range]) -> dict[str, BaseDistribution]:
    return {name: _distribution(dimension) for name, dimension in space.items()}


def _distribution(dimension: Range) -> BaseDistribution:
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    return FloatDistribution(*dimension.bounds, log=dimension.log is not None)


def frozen_trials(space: dict[str, Range], trials: Iterable[TrialState]) -> list[FrozenTrial]:
    """Trials in Optuna's words: every report an intermediate value, stopped = PRUNED, failed = FAIL."""
    dimensions, now = distributions(space), datetime.now()
    return [_frozen(trial, dimensions, now) for trial in trials]


def accuracies(trial: TrialState) -> dict[int, float]:
    """Epoch to validation accuracy, of what a trial has reported in order."""
    return {report["epoch"]: report["metrics"][METRIC] for report in trial.reports
            if report["metrics"].get(METRIC) is not None and report["decision"] != "failed"}


def _frozen(trial: TrialState, dimensions: dict[str, BaseDistribution], now: datetime) -> FrozenTrial:
    # Not by create_trial, which checks every value twice: at 1000 trials that takes as long as TPE itself.
    return FrozenTrial(
        number=trial.number, trial_id=trial.number, state=OPTUNA_STATES[trial.state],
        value=trial.metric(METRIC) if trial.state in ("complete", "stopped") else None,
        intermediate_values=accuracies(trial),
        params={name: trial.parameters[name] for name in dimensions}, distributions=dimensions,
        user_attrs={"trial": trial.number, "origin": trial.origin, "protected": trial.protected}
        | ({"reason": trial.reason} if trial.reason else {}),
        system_attrs={}, datetime_start=now, datetime_complete=None if trial.state == "running" else now,
    )


class _Told(optuna.storages.InMemoryStorage):
    """A study that knows these trials, in their order. Optuna's own storages copy each of them at every ask."""

    def __init__(self, trials: list[FrozenTrial]):
        super().__init__()
        self._told = trials
        for number, trial in enumerate(trials, 1):
            trial.number = number  # 0 is the trial that is asked for

    def get_all_trials(self, study_id: int, deepcopy: bool = True,
                       states: Container[OptunaState] | None = None) -> list[FrozenTrial]:
        asked = super().get_all_trials(study_id, deepcopy, states)
        return [*(trial for trial in self._told if states is None or trial.state in states), *asked]


def write_optuna_file(space: dict[str, Range], record: Record, path: Path, study_name: str) -> None:
    """Write the search as a SQLite file that optuna-dashboard opens.

    It is made in memory first: in a file Optuna would wait for the disk after every trial.
    """
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"poolclass": StaticPool})
    study = optuna.create_study(storage=storage, study_name=study_name, direction="maximize")
    study.set_metric_names([METRIC])
    study.add_trials(frozen_trials(space, record.trials.values()))
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    remove(draft, path.parent)
    with contextlib.closing(sqlite3.connect(draft)) as file, storage.engine.connect() as memory:
        memory.connection.driver_connection.backup(file)
    storage.remove_session()
    storage.engine.dispose()
    draft.replace(path)


# ---------------------------------------------------------------------------------------------------------------------
# Go on or stop


class Rungs:
    """Asynchronous successive halving by Ray's own scheduler, keyed by our trial numbers.

    Ray keys rungs by its trial ids, which change when a search is resumed. So it sees stand-ins that carry our number
    instead, and a record can be replayed into it.
    """

    def __init__(self, epochs: list[int], reduction_factor: int):
        self._scheduler = None
        self._known: set[int] = set()
        if epochs:
            # Rungs are grace_period * reduction_factor^k up to max_t; the margin keeps rounding from losing the last.
            self._scheduler = AsyncHyperBandScheduler(
                time_attr="epoch", metric=METRIC, mode="max", grace_period=epochs[0], max_t=epochs[-1] * 1.01,
                reduction_factor=reduction_factor, stop_last_trials=False,
            )

    def passes(self, number: int, epoch: int, accuracy: float) -> bool:
        """Enter a trial's accuracy at an epoch; False where it belongs to the part that is stopped."""
        if self._scheduler is None:
            return True
        stand_in = SimpleNamespace(trial_id=str(number))
        if number not in self._known:
            self._known.add(number)
            self._scheduler.on_trial_add(None, stand_in)
        decision = self._scheduler.on_trial_result(None, stand_in, {"epoch": epoch, METRIC: accuracy})
        return decision == TrialScheduler.CONTINUE


class TrialBook:
    """Hands out trials, decides after each report, and records both before anything else happens.

    has_results: says whether a finished trial's files are there. Where it is given, a trial counts as finished only
    once its last epoch's checkpoint is on record and its files are there. scored: whether reports need an accuracy.
    """

    def __init__(self, record: Record, proposer: Proposer, *, epochs: int, rungs: Iterable[int] = (),
                 reduction_factor: int = 3, has_results: Callable[[TrialState], bool] | None = None,
                 scored: bool = True, on_change: Callable[[], None] | None = None):
        self.proposer, self.epochs, self.has_results = proposer, epochs, has_results
        self.rungs, self._reduction_factor = list(rungs), reduction_factor
        self._on_change, self._scored = on_change or (lambda: None), scored
        self._begin(record)

    def _begin(self, record: Record) -> None:
        self.record = record
        self._rungs = Rungs(self.rungs, self._reduction_factor)
        self._replay_rungs()
        self._unfinished = [trial.number for trial in record.trials.values() if not self.is_finished(trial)]
        self.running: set[int] = set()
        self._begun_at: dict[int, int] = {}  # epochs that the trials had when they were handed out

    def reopen(self) -> None:
        """Begin from what is on the disk, as a new driver would."""
        self._begin(self.record.reopened())

    def is_finished(self, trial: TrialState) -> bool:
        if trial.state == "complete" and self.has_results:
            saved = trial.checkpoint is not None and trial.checkpoint["epoch"] == self.epochs
            return saved and self.has_results(trial)
        return trial.state != "running"

    def next(self) -> TrialState | None:
        """The next trial to run: one that was cut off, else a new one; None where there are no more."""
        if self._unfinished:
            trial = self.record.trials[self._unfinished.pop(0)]
        else:
            trial = self.proposer(len(self.record.trials), self.record)
            if trial is None:
                return None
            self.record.add_trial(trial)
        self.running.add(trial.number)
        self._begun_at[trial.number] = trial.epoch
        self._on_change()
        return trial

    def report(self, number: int, metrics: dict[str, Any]) -> str:
        """Record a report and decide: continue, stop, complete or failed."""
        metrics = dict(metrics)
        epoch, failure, where = metrics.pop("epoch"), metrics.pop("failure", None), metrics.pop("where", None)
        if self._scored and not failure and not math.isfinite(metrics.get(METRIC, math.nan)):
            failure = f"{METRIC} is {metrics.get(METRIC, 'missing')} at epoch {epoch}"
        trial = self.record.trials[number]
        earlier = trial.recorded(epoch)
        if earlier is not None and not failure:
            decision = self._repeated(trial, epoch, earlier, metrics)
        else:
            decision = "failed" if failure else self._decide(trial, epoch, metrics.get(METRIC))
            self.record.report(number, epoch, decision, metrics, failure, where)
        if decision != "continue":
            self.running.discard(number)
        self._on_change()
        return decision

    def _decide(self, trial: TrialState, epoch: int, accuracy: float | None) -> str:
        passes = accuracy is None or self._rungs.passes(trial.number, epoch, accuracy)
        if epoch >= self.epochs:
            return "complete"
        return "continue" if passes or trial.protected else "stop"

    def _repeated(self, trial: TrialState, epoch: int, earlier: dict[str, Any], metrics: dict[str, Any]) -> str:
        """An epoch that is run again after a cut-off counts once; where it comes out differently, say so."""
        for name in (METRIC, "validation_loss"):
            recorded, seen = earlier["metrics"].get(name), metrics.get(name)
            if recorded != seen:
                self.record.mismatch(trial.number, epoch, name, recorded, seen)
                break
        return earlier["decision"]

    def checkpoint(self, number: int, epoch: int, path: str) -> None:
        self.record.checkpoint(number, epoch, path)

    def take_back(self, number: int) -> bool:
        """Hand a trial whose workers died out again; False where it has got no further since it was handed out."""
        trial = self.record.trials[number]
        if trial.state != "running" or trial.epoch == self._begun_at[number]:
            return False
        self._unfinished.append(number)
        self.running.discard(number)
        return True

    def fail(self, number: int, reason: str) -> None:
        """A trial ended without a report."""
        if self.record.trials[number].state == "running":
            self.record.fail(number, reason)
        self.running.discard(number)
        self._on_change()

    @property
    def total(self) -> int:
        return self.proposer.total(self.record)

    @property
    def protected(self) -> int:
        """How many of the first trials are never stopped."""
        return self.proposer.protected

    @property
    def waiting(self) -> int:
        """How many trials were cut off and have not been taken up again."""
        return len(self._unfinished)

    @property
    def may_stop(self) -> bool:
        return bool(self.rungs)

    @property
    def complete(self) -> bool:
        """Nothing is left to run."""
        trials = self.record.trials
        return len(trials) >= self.total and all(self.is_finished(trial) for trial in trials.values())

    def _replay_rungs(self) -> None:
        """Fill the rungs in the order in which the reports came."""
        for trial, report in self.record.reports_in_order():
            accuracy = report["metrics"].get(METRIC)
            if report["decision"] != "failed" and accuracy is not None:
                self._rungs.passes(trial, report["epoch"], accuracy)


def winner(record: Record) -> TrialState | None:
    """The best last-epoch validation accuracy among trials that ran to the end; ties: validation loss, then number."""
    finished = [trial for trial in record.trials.values() if trial.state == "complete"]
    return min(finished, key=lambda t: (-t.metric(METRIC), t.metric("validation_loss"), t.number), default=None)

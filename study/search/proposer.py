"""Propose search points: the default point, then Sobol points, then Optuna's TPE sampler."""

import math
import warnings
from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from scipy.stats import qmc

from kdstudy.config.sections import Range
from kdstudy.config.settings import StudyConfig
from kdstudy.search.runs import accuracies, search_view_seed
from kdstudy.store.record import METRIC, Record, TrialState
from kdstudy.trainables import losses
from kdstudy.trainables.seeds import small_seed

LOSS = "loss"  # the dimension on which others depend
TEACHER = "teacher"
ASKED_AGAIN = 4  # retries when TPE proposes a point that has already been tried
OPTUNA_STATES = {
    "complete": OptunaState.COMPLETE,
    "stopped": OptunaState.PRUNED,
    "failed": OptunaState.FAIL,
    "running": OptunaState.RUNNING,
}
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class OptunaProposer:
    """Proposes the default point, then scrambled Sobol points (both protected from early stopping), then TPE's points.

    Each trial has only the parameters of its loss. default: the default point, and beside it the values of parameters
    that are not searched and that only other losses have. TPE also sees the record's prior trials. The proposer keeps
    no state: a proposal depends only on the settings, the trial number and the record, so a resumed search continues as
    if it had not been interrupted.
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
        return cls(config.space(arm), config.default_values(arm), config.trials(arm), config.protected(arm),
                   config.seed, arm, concurrent)

    def __call__(self, number: int, record: Record) -> TrialState | None:
        if number >= self.trials:
            return None
        origin = "default" if number == 0 else "sobol" if number <= self.protected else "tpe"
        parameters = losses.active(self.default | self._parameters(number, record))
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
        """Return a point that has not been tried. In a space of choices TPE repeats points: then ask it again, and
        finally draw at random, unless every point has been tried."""
        told, seen = frozen_trials(self.space, known), {self._key(trial.parameters) for trial in known}
        point = self._ask(told, number)
        for attempt in range(1, ASKED_AGAIN + 1):
            if self._key(point) not in seen or self._is_explored(seen):
                return point
            point = self._ask(told, number, attempt)
        random = np.random.default_rng(small_seed(self.seed, self.arm, "new", number))
        while self._key(point) in seen:
            point = _point(self.space, [random.random() for _ in self.space])
        return point

    def _ask(self, told: list[FrozenTrial], *seeds: int) -> dict[str, Any]:
        # TPE must start modelling once the protected trials have ended, even if some of them are still running.
        startup, spaces = max(1, self.protected + 2 - self.concurrent), subspaces(self.space)
        conditional = len(set(map(tuple, spaces.values()))) > 1
        sampler = optuna.samplers.TPESampler(seed=small_seed(self.seed, self.arm, "tpe", *seeds), multivariate=True,
                                             group=conditional, constant_liar=True, n_startup_trials=startup)
        study = optuna.create_study(storage=_FixedTrials(told), direction="maximize", sampler=sampler)
        if not conditional:
            return study.ask(distributions(self.space)).params
        trial = study.ask()
        loss = trial.suggest_categorical(LOSS, self.space[LOSS].choice)
        for name, dimension in spaces[loss].items():
            _suggest(trial, name, dimension)
        return {name: trial.params[name] for name in self.space if name in trial.params}

    def _key(self, parameters: dict[str, Any]) -> tuple:
        return tuple(parameters.get(name) for name in self.space)

    def _is_explored(self, seen: set[tuple]) -> bool:
        """Whether every point of a space of choices has been tried."""
        choices = [[dimension.choice for dimension in space.values()] for space in subspaces(self.space).values()]
        return not any(None in each for each in choices) and len(seen) >= sum(
            math.prod(map(len, each)) for each in choices)


def subspaces(space: dict[str, Range]) -> dict[str | None, dict[str, Range]]:
    """Return for each loss that a search chooses from the other dimensions that its trials have.

    {None: the whole space} if it chooses from none."""
    if LOSS not in space:
        return {None: space}
    others = {name: dimension for name, dimension in space.items() if name != LOSS}
    return {loss: {name: others[name] for name in losses.active({LOSS: loss} | others) if name != LOSS}
            for loss in space[LOSS].choice}


def _suggest(trial: optuna.Trial, name: str, dimension: Range) -> None:
    if dimension.choice is not None:
        trial.suggest_categorical(name, dimension.choice)
    else:
        trial.suggest_float(name, *dimension.bounds, log=dimension.log is not None)


def sobol_points(space: dict[str, Range], count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` scrambled Sobol points, uniform on each dimension's own (linear or log) scale.

    Each has the dimensions of its loss. Losses are equally frequent, and so are teachers, up to one point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The balance properties of Sobol")
        unit = qmc.Sobol(d=len(space), scramble=True, rng=seed).random(count)
    for place in [list(space).index(name) for name in (TEACHER, LOSS) if name in space]:
        unit[:, place] = (unit[:, place].argsort().argsort() + 0.5) / count
    return [_point(space, point) for point in unit]


def _point(space: dict[str, Range], unit: Iterable[float]) -> dict[str, Any]:
    """Return the point at places 0 to 1 of all dimensions, without those that its loss does not have."""
    point = {name: _from_unit(space[name], u) for name, u in zip(space, unit, strict=True)}
    return losses.active(point) if LOSS in space else point


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
    """Convert trials to Optuna's: reports become intermediate values, stopped becomes PRUNED, failed becomes FAIL."""
    dimensions, now = distributions(space), datetime.now()
    return [_frozen(trial, dimensions, now) for trial in trials]


def _frozen(trial: TrialState, dimensions: dict[str, BaseDistribution], now: datetime) -> FrozenTrial:
    own = {name: dimension for name, dimension in dimensions.items() if name in trial.parameters}
    # Not create_trial, which validates every value twice: for 1000 trials that takes as long as TPE itself.
    return FrozenTrial(
        number=trial.number, trial_id=trial.number, state=OPTUNA_STATES[trial.state],
        value=trial.metric(METRIC) if trial.state in ("complete", "stopped") else None,
        intermediate_values=accuracies(trial),
        params={name: trial.parameters[name] for name in own}, distributions=own,
        user_attrs={"trial": trial.number, "origin": trial.origin, "protected": trial.protected}
        | ({"reason": trial.reason} if trial.reason else {}),
        system_attrs={}, datetime_start=now, datetime_complete=None if trial.state == "running" else now,
    )


class _FixedTrials(optuna.storages.InMemoryStorage):
    """An Optuna storage with a fixed list of trials. Optuna's own storages copy every trial at each ask."""

    def __init__(self, trials: list[FrozenTrial]):
        super().__init__()
        self._told = trials
        for number, trial in enumerate(trials, 1):
            trial.number = number  # 0 is the trial being asked for

    def get_all_trials(self, study_id: int, deepcopy: bool = True,
                       states: Container[OptunaState] | None = None) -> list[FrozenTrial]:
        asked = super().get_all_trials(study_id, deepcopy, states)
        return [*(trial for trial in self._told if states is None or trial.state in states), *asked]

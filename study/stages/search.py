"""The search stages: one for the baseline and one for distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.search import warm_start
from kdstudy.search.runs import METRIC, Proposer, best_or_fail, has_died, search_view_seed
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.store import check
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import Done, Parameters, Share, StageFiles, Whole
from kdstudy.trainables.settings import ModelSettings
from kdstudy.watch.progress import show_parameters

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task

PARALLEL_BEFORE = 4  # leaves fingerprints as they were before this setting came; it must not follow the default
ORIGINS = frozenset({"default", "sobol", "tpe"})


class SearchDone(Done):
    trials: Annotated[Whole, Field(ge=1)]
    winner: Whole
    parameters: Parameters
    best_validation: Share
    kind: str
    family: str
    ranking: list[Whole] = Field(default_factory=list)
    only_shared: Parameters | None = None

    def run_count(self) -> int:
        return self.trials

    def trials_named(self) -> set[int]:
        return {self.winner, *self.ranking}

    def accuracies_named(self) -> dict[int, float]:
        return {self.winner: self.best_validation}


class SearchStage(Stage):
    """One arm's search. arm: `baseline` or `distill`."""

    arm: ClassVar[str]
    trains = "student"

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int:
        return config.trials(cls.arm)

    def inputs(self) -> list[Any]:
        config = self.config
        space = {name: dimension.model_dump() for name, dimension in config.space(self.arm).items()}
        inputs = [*students.shared_inputs(self.context), space, config.default_values(self.arm),
                  config.protected(self.arm), config.rungs, config.search.reduction_factor, config.report_every]
        if config.search.parallel != PARALLEL_BEFORE:
            inputs.append({"parallel": config.search.parallel})
        return [*inputs, {"warm_start": config.search.warm_start}] if config.search.warm_start else inputs

    def is_current(self) -> bool:
        done = self.folder.done
        return done is not None and done["trials"] >= self.config.trials(self.arm)

    def may_take_over(self, neighbour: StageFolder) -> bool:
        # With a different budget the arms would not be comparable.
        done = neighbour.done
        if done is None or done["trials"] != self.config.trials(self.arm):
            return False
        return not self.is_warm_started or self._starts_alike(neighbour)

    # -- its trials ---------------------------------------------------------------------------------------------------

    @property
    def rungs(self) -> list[int]:
        return self.config.rungs

    def runs(self) -> None:
        return None

    @property
    def parallel(self) -> int:
        return self.config.search.parallel

    def proposer(self, concurrent: int) -> Proposer:
        from kdstudy.search.proposer import OptunaProposer  # Optuna and SciPy take a second to import

        return OptunaProposer.of(self.config, self.arm, concurrent)

    def failed_runs(self, record: Record) -> list[TrialState]:
        """Return the trials whose workers died. A search goes on without them, and a new driver tries each of them
        again, once; a trial that failed by itself would fail again."""
        return [trial for trial in record.trials.values() if has_died(trial) and trial.retried_from is None]

    def may_improve(self, folder: StageFolder) -> bool:
        """Also where a driver that tried such trials again was cut off."""
        record, done = folder.read_record(), folder.done
        return bool(self.failed_runs(record)) or any(done.get(state, count) != count
                                                     for state, count in _states(record).items())

    def task(self) -> Task:
        return students.arm_task(self.context, self.learns_from, [search_view_seed(self.config.seed)])

    def close(self, folder: StageFolder) -> None:
        from kdstudy.search.optuna_file import write_optuna_file  # Optuna takes long to import

        record = folder.record()
        best = best_or_fail(self.name, record, "change the settings, or remove "
                            f"{self.context.storage}/{folder.path.name} to search again")
        write_optuna_file(self.config.space(self.arm), record, folder.path / "optuna.db",
                          f"{self.config.name}-{self.name}")
        trials = list(record.trials.values())
        states = _states(record)
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        started = f" · started from {len(record.prior)} trials of {record.prior_study}" if record.prior else ""
        earlier = folder.done or {}
        if earlier.get("trials") == len(trials) and all(earlier.get(state) == count for state, count in states.items()):
            return  # what was tried again has failed again; other stages rest on what was found before
        folder.finish({
            **self.context.family("student"),
            "outcome": f"{len(trials)} trials ({counts}) · best {100 * best.metric(METRIC):.1f} % validation at "
                       f"{show_parameters(best.parameters)}{started}",
            "seconds": record.seconds, "trials": len(trials), **states, "winner": best.number,
            "parameters": best.parameters, "best_validation": best.metric(METRIC),
            "default_validation": record.trials[0].metric(METRIC) if record.trials[0].state == "complete" else None,
        })

    # -- a warm start -------------------------------------------------------------------------------------------------

    @property
    def is_warm_started(self) -> bool:
        """Whether the search starts from another study's search."""
        return bool(self.config.search.warm_start and self.config.space(self.arm))

    def begin_record(self, record: Record) -> None:
        if self.is_warm_started and not record.prior:
            record.add_prior(self.config.search.warm_start, self._read_prior())

    def prior_trials(self) -> int:
        """Return how many trials of another study the search starts or started from. Raises UserError."""
        folder = self.known_folder
        if folder and (prior := folder.read_record().prior):
            return len(prior)
        return len(self._read_prior())

    def _read_prior(self) -> list[dict[str, Any]]:
        def check_study(folder: Path) -> None:
            check.check(folder, self.context.stage_files)

        return warm_start.read_prior(self.config, self.arm, self.context.folder, check_study)

    def _starts_alike(self, neighbour: StageFolder) -> bool:
        """Whether a sibling's search has the same prior trials; assumed if the other study no longer exists."""
        prior = neighbour.read_record().prior
        with contextlib.suppress(UserError):
            return [trial.parameters for trial in prior] == [known["parameters"] for known in self._read_prior()]
        return True

    # -- for other stages ---------------------------------------------------------------------------------------------

    @property
    def findings(self) -> dict[str, Any]:
        """The results of the sensitivity analysis of the finished search.

        ranking: trials that ran all epochs, best first by the fitted surface. only_shared: for distillation, the best
        values of the parameters that both arms share, with the others at their defaults; None if they are unknown.
        """
        done = self.folder.done
        return done if "ranking" in done else self._found

    @cached_property
    def _found(self) -> dict[str, Any]:
        from kdstudy.analysis.sensitivity.ranking import choices  # SciPy takes a second to import
        from kdstudy.analysis.study_files import StudyFiles

        ranking, best = choices(StudyFiles(self.context.folder), self.arm)
        shared = self.config.shared_parameters if best else []
        return {"ranking": ranking, "only_shared": {name: self._rounded(name, best[name]) for name in shared} or None}

    def _rounded(self, name: str, value: Any) -> Any:
        """Round to three significant digits, within the range, so that the results table shows the exact values."""
        dimension = getattr(self.config.search, name)
        if dimension.choice is not None:
            return value
        low, high = dimension.bounds
        return min(max(float(f"{value:.3g}"), low), high)

    def keep_findings(self) -> None:
        """Save the findings in the done-mark: recomputed on another machine or with more trials, they could differ."""
        folder = self.folder
        if (done := folder.done) and "ranking" not in done:
            folder.finish(done | self.findings)

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        trials = self.config.trials(self.arm)
        load = students.workload(self.context, self.arm, trials)
        return replace(load, protected=min(trials, self.config.protected(self.arm) + 1),
                       rungs=tuple(self.config.rungs), parallel=self.parallel)

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        return Space(students.copies_in_checkpoint(self.config) * size(self.config.student))


def _states(record: Record) -> dict[str, int]:
    """Return how many trials have ended in each way."""
    trials = record.trials.values()
    return {state: sum(trial.state == state for trial in trials) for state in ("complete", "stopped", "failed")}


class BaselineSearch(SearchStage):
    name = arm = loop = "baseline"
    files = StageFiles(SearchDone, ORIGINS, distils=False)


class DistillSearch(SearchStage):
    name = arm = loop = "distill"
    needs = ("teacher_logits",)
    learns_from = "teacher_logits"
    files = StageFiles(SearchDone, ORIGINS, distils=True)

    @property
    def waits_for(self) -> tuple[str, ...]:
        return students.logits_stages(self.config)

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context)]


SEARCHES = (BaselineSearch, DistillSearch)

"""Run stages as soon as their dependencies allow: open each once its inputs are ready and close it once its trials have
ended, while other stages run. No worker idles until the last trial of an unrelated stage ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import ray
import torch

from kdstudy.errors import StorageError, StudyFailedError
from kdstudy.search.manager import TrialManager
from kdstudy.stages.base import Stage, StageFolder
from kdstudy.stages.order import priority
from kdstudy.study import Study
from kdstudy.trainables.task import Task, teacher_predictions
from kdstudy.tune import ddp
from kdstudy.tune.cluster import remote_work
from kdstudy.tune.connection import Connection
from kdstudy.tune.tuner import Job, run_trials
from kdstudy.tune.watchdog import Watchdog
from kdstudy.watch.display import Display


class Pipeline:
    """The stages of a study that train or evaluate models; implements `tuner.Work`. A stage that is done may have more
    to run after all, and is then opened once more: see `Stage.settle`.

    names: the stages to run. before_work: called before the first unfinished stage; raises UserError if the study
    cannot run.

    failures: errors from opening or closing stages; stages that depend on these are skipped, others continue.
    did_work: whether there was anything to do.
    """

    def __init__(self, study: Study, names: Iterable[str], display: Display, connection: Connection,
                 before_work: Callable[[], None]):
        self._study, self._display, self._connection = study, display, connection
        self._before_work = before_work
        self._waiting = sorted(names, key=priority)
        self._wanted = set(self._waiting)
        self.jobs: list[Job] = []
        self.failures: list[StudyFailedError] = []
        self.did_work = self._began = False
        self._done: set[str] = set()
        self._folders: dict[str, StageFolder] = {}
        self._meter, self._read_at_begin = Meter(), {}

    def run(self) -> None:
        """Run the unfinished stages, each as soon as it can start. Raises the first failure."""
        try:
            self.advance()
            if not self.is_ended():
                run_trials(self, self._study.storage, self._connection.share, self._resources.worker_retries,
                           slots=self._connection.slots,
                           watchdog=Watchdog(self._resources.hang_minutes, self._display.note))
        finally:
            self._display.stop()
        if self.failures:
            raise self.failures[0]

    @property
    def _resources(self):
        return self._study.config.resources

    # -- the `tuner.Work` protocol ------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Close the stages whose trials have ended, and open those whose dependencies are done."""
        for job in self.jobs:
            if job.open and job.trials.complete:
                self._close(job)
        while ready := [name for name in self._waiting if self._is_ready(name)]:
            self._waiting.remove(ready[0])
            self._open(self._study.stages[ready[0]])

    def is_ended(self) -> bool:
        return not any(job.open for job in self.jobs) and not any(map(self._is_ready, self._waiting))

    def occupied(self, trials: int, slots: int) -> None:
        self._meter.set(trials, slots)

    def interrupted(self) -> None:
        self._display.note("ending the running trials, which takes some seconds; Ctrl-C again ends them at once")

    def _is_ready(self, name: str) -> bool:
        needs = self._study.stages[name].waits_for
        return all(needed in self._done or needed not in self._wanted for needed in needs)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, stage: Stage) -> None:
        folder, taken = self._study.opened(stage)
        self.did_work |= taken
        if stage.is_current() and not stage.may_improve(folder):
            self._done.add(stage.name)
            self._show(folder, reused=True)
            self._settle(stage)
            return
        self._folders[stage.name] = folder
        try:
            self._begin_work(folder)
            if stage.is_given:
                with remote_work(stage.name):
                    doubt = stage.take_given(folder, self._predict)
                self._ended(folder)
                if doubt:
                    self._display.note(doubt)
                return
            self._read_at_begin[stage.name] = self._meter.read()
            self._add_job(stage, folder)
        except StorageError:
            raise
        except StudyFailedError as error:
            self._note_failure(error)

    def _begin_work(self, folder: StageFolder) -> None:
        self.did_work = True
        if not self._began:
            self._began = True
            self._display.begin(folder.name, text="starting")
            self._before_work()
        folder.path.mkdir(parents=True, exist_ok=True)
        self._show_running(also=folder.name)

    def _add_job(self, stage: Stage, folder: StageFolder) -> None:
        trials = self._manager(stage, folder)
        job = Job(stage.name, stage.loop, trials, self._connection.put(stage.task()), stage.result_files,
                  needed=stage.runs() is not None)
        self.jobs = [other for other in self.jobs if other.stage != stage.name] + [job]  # it may be open once more
        self.jobs.sort(key=lambda job: priority(job.stage))
        if not trials.complete:
            self._begin_session(trials)
            if stage.workers > 1:  # Ray Train runs its trials, not Ray Tune
                ddp.run_parallel(job, self._study.storage, self._connection.share, stage.workers,
                                 self._resources.worker_retries, self._resources.hang_minutes,
                                 self._display.note)
        if trials.complete:
            self._close(job)

    def _manager(self, stage: Stage, folder: StageFolder) -> TrialManager:
        """Return the trial manager of a stage, which resumes from the stage's record."""
        record = folder.record()
        stage.begin_record(record)
        for trial in stage.failed_runs(record):  # a new driver retries them
            record.retry(trial.number)
        # A search that an earlier version began goes on as it began: it decides at once.
        parallel = None if any(trial.start is None for trial in record.trials.values()) else stage.parallel
        proposer = stage.proposer(parallel or self._connection.slots.count())
        return TrialManager(record, proposer, epochs=stage.epochs, rungs=stage.rungs, parallel=parallel,
                            reduction_factor=self._study.config.search.reduction_factor,
                            has_results=stage.result_check(folder), scored=stage.scored,
                            on_change=self._show_trials)

    def _begin_session(self, trials: TrialManager) -> None:
        share = replace(self._connection.share, concurrent=self._connection.slots.count())
        trials.record.begin_session(epochs=trials.epochs, rungs=trials.rungs, wanted=trials.total,
                                    protected=trials.protected, share=str(share))

    def _predict(self, task: Task) -> np.ndarray:
        """Let a teacher predict the validation images (N,) on a worker. Raises Ray's errors."""
        share = self._connection.share
        return ray.get(ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(predict_on_worker).remote(task))

    # -- closing ------------------------------------------------------------------------------------------------------

    def _close(self, job: Job) -> None:
        job.open = False
        folder = self._folders[job.stage]
        folder.facts = self._utilisation(job.stage)
        try:
            self._study.stages[job.stage].close(folder)
        except StorageError:
            raise
        except StudyFailedError as error:
            self._note_failure(error)
        else:
            self._ended(folder)

    def _ended(self, folder: StageFolder) -> None:
        self._done.add(folder.name)
        self._show(folder)
        self._settle(self._study.stages[folder.name])
        self._show_running()

    def _settle(self, stage: Stage) -> None:
        """Let a stage that is done reopen stages that have more to run after all."""
        try:
            reopened = [name for name in stage.settle() if name in self._done]
        except StorageError:
            raise
        except StudyFailedError as error:
            self._note_failure(error)
            return
        self._done.difference_update(reopened)
        self._waiting = sorted([*self._waiting, *reopened], key=priority)

    def _note_failure(self, error: StudyFailedError) -> None:
        self.failures.append(error)
        self._show_running()

    # -- progress -----------------------------------------------------------------------------------------------------

    def _show(self, folder: StageFolder, reused: bool = False) -> None:
        """Print the final line of a finished stage."""
        done = folder.done
        outcome = done["outcome"] + (f" (taken from {done['taken_from']})" if reused and "taken_from" in done else "")
        if note := folder.read_record().mismatch_note():
            outcome += f" · {note}"
        if not reused and "utilisation" in done:
            outcome += f" · {100 * done['utilisation']:.0f} % of {done['slots']:.3g} slots in use"
        self._display.end(folder.name, outcome, done["seconds"], reused)

    def _show_running(self, also: str | None = None) -> None:
        running = [job.stage for job in self.jobs if job.open] + ([also] if also else [])
        if running:
            self._display.now(*running)

    def _show_trials(self) -> None:
        self._display.trials({job.stage: job.trials for job in self.jobs if job.open})

    def _utilisation(self, name: str) -> dict[str, float]:
        """Return the average number of slots during a stage and the share of them in use by any stage (0 to 1); empty
        if no trials ran."""
        used, offered, seconds = (now - then for now, then in zip(self._meter.read(), self._read_at_begin[name],
                                                                  strict=True))
        return {"utilisation": used / offered, "slots": offered / seconds} if offered else {}


def predict_on_worker(task: Task) -> np.ndarray:
    """A Ray task: return the classes (N,) that the teacher predicts for the validation images."""
    torch.set_num_threads(task.threads)
    return teacher_predictions(task)


class Meter:
    """Integrates the numbers of used and available slots over time."""

    def __init__(self) -> None:
        self._at, self._used_now, self._slots_now = time.monotonic(), 0, 0
        self._used = self._offered = self._seconds = 0.0

    def set(self, used: int, slots: int) -> None:
        self.read()
        self._used_now, self._slots_now = used, slots

    def read(self) -> tuple[float, float, float]:
        """Return slot-seconds used, slot-seconds available, and seconds since slots first became available."""
        now = time.monotonic()
        passed, self._at = now - self._at, now
        if self._slots_now:
            self._used += passed * self._used_now
            self._offered += passed * self._slots_now
            self._seconds += passed
        return self._used, self._offered, self._seconds

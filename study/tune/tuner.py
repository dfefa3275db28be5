"""Run trials with Ray Tune. Its searcher, scheduler and callback only carry out the trial managers' decisions."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdstudy.errors import InterruptedStudyError, StorageError, StudyFailedError
from kdstudy.search.manager import TrialManager
from kdstudy.store.record import TrialState
from kdstudy.store.storage import TUNE, Storage
from kdstudy.trainables.any_loop import AnyLoopTrainable
from kdstudy.trainables.files import CHECKPOINT_MARK, RESULT_FILES
from kdstudy.trainables.trainable import NotSavedError
from kdstudy.tune.cluster import Share
from kdstudy.tune.interrupts import interrupts_collected
from kdstudy.tune.own_ray import check_own_ray
from kdstudy.tune.reasons import reason_of, why_worker_died
from kdstudy.tune.slots import OneSlot, Slots, selector
from kdstudy.tune.watchdog import Watchdog

TRIES = 3  # consecutive attempts without progress
UNFINISHED = "trials were left unfinished"
KEPT = "finished work is kept: fix the cause, then run the same command again"
REPORTED = ("epoch", "train_loss", "hard_loss", "soft_loss", "validation_accuracy", "validation_loss", "agreement",
            "test_accuracy", "lr", "images_per_second", "seconds", "failure", "where")
Name = tuple[str, int]  # (stage, trial number)
NOWHERE = (0, "running")


class _DriverOnly:
    """Excludes a manager from Tune's copying and pickling of its arguments, which serve a restore that is not used."""

    def __deepcopy__(self, memo: dict) -> "_DriverOnly":
        return self

    def __reduce__(self) -> tuple:
        return _DriverOnly, ()


@dataclass
class Job:
    """A stage's trials: the manager that decides on them, and the task that they share.

    loop: the loop in `kdstudy.trainables` that runs them. task: a reference to an object in Ray's object store.
    results: the files to keep of a last checkpoint that is a result. needed: whether the stage fails if a trial does.
    open: True until the stage is closed. set_aside: needed trials that wait until the others have ended.
    """

    stage: str
    loop: str
    trials: TrialManager
    task: Any
    results: tuple[str, ...] = RESULT_FILES
    needed: bool = False
    open: bool = True
    set_aside: set[int] = field(default_factory=set)


class Work(Protocol):
    """The jobs to run. More jobs may open while others run, since stages depend on each other's results."""

    jobs: list[Job]  # all opened so far, in order of priority

    def advance(self) -> None:
        """Close the jobs whose managers are complete, and open those that can start now."""

    def is_ended(self) -> bool:
        """Whether no job is open and none will open."""

    def occupied(self, trials: int, slots: int) -> None:
        """Called when the number of running trials or of slots changes."""

    def interrupted(self) -> None:
        """Called at the first Ctrl-C or SIGTERM, in the signal's handler; the running trials will end in seconds."""


class _JobSearcher(_DriverOnly, Searcher):
    """Asks the managers for trials, in order of the jobs' priority, while slots are free. It saves no state, since the
    records hold all of it.

    interrupted: non-empty once no more trials may start. only_cut_off: hand out interrupted trials only.
    """

    def __init__(self, work: Work, storage: Storage, slots: Slots, interrupted: list[int], only_cut_off: bool):
        super().__init__(metric="validation_accuracy", mode="max")
        self._work, self._storage, self._slots = work, storage, slots
        self._interrupted, self._only_cut_off = interrupted, only_cut_off
        self._handed_out: set[str] = set()
        self._changed = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._interrupted:
            return Searcher.FINISHED
        if self._changed:
            self._changed = False
            self._work.advance()
        if len(self._handed_out) >= self._slots.count():
            return None
        for job in self._work.jobs:
            if job.open and (job.trials.waiting or not self._only_cut_off) and (trial := job.trials.next()):
                self._handed_out.add(trial_id)
                return trial_config(job, trial, self._storage)
        return None if self._handed_out else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._handed_out.discard(trial_id)
        self._changed = True

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _JobScheduler(_DriverOnly, FIFOScheduler):
    """Stops the trials that the managers stop. Trials never end by themselves, so Tune passes every report, even the
    last, to this scheduler first."""

    def __init__(self, work: Work, slots: Slots, watchdog: Watchdog):
        super().__init__()
        self._work, self._slots, self._watchdog = work, slots, watchdog
        self._kept: Counter[tune.PlacementGroupFactory] = Counter()  # idle workers to keep, by their resources

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keep the trial off refused nodes."""
        if refused := self._slots.refused:
            bundles = trial.placement_group_factory.bundles
            trial.update_resources(tune.PlacementGroupFactory(
                bundles, bundle_label_selector=[selector(refused)] * len(bundles)))
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        if hasattr(controller, "_actor_cache"):
            self._keep_idle(controller._actor_cache, trial.placement_group_factory)

    def _keep_idle(self, cache: Any, resources: tune.PlacementGroupFactory) -> None:
        """Make Tune keep as many idle workers as there are slots.

        By default it ends all but one between two stages, and ends a newly started worker as soon as another is free:
        with trials shorter than a worker's start, one worker did all the work. Idle workers with `resources` of an
        earlier stage are released, since they would block new ones.
        """
        for earlier in self._kept.keys() - {resources}:
            cache.decrease_max(earlier, by=self._kept.pop(earlier))
        if (more := self._slots.count() - self._kept[resources]) > 0:
            self._kept[resources] += more
            cache.increase_max(resources, by=more)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune asks this in every step of its loop, which waits a tenth of a second at most."""
        self._watchdog.look(getattr(tune_controller, "_tune_controller", tune_controller))
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        manager = _job(self._work, trial.config["stage"]).trials
        decision = manager.report(trial.config["number"], reported(result))
        return TrialScheduler.CONTINUE if decision == "continue" else TrialScheduler.STOP


class _JobCallback(_DriverOnly, tune.Callback):
    """Records checkpoints, and handles trials that Tune gives up.

    Checkpoint paths are relative to the study folder, so that a study can be moved. A last checkpoint that is a result
    is first copied from Tune's folder to the stage's own.
    """

    def __init__(self, work: Work, storage: Storage, slots: Slots, worker_retries: int, watchdog: Watchdog):
        self._work, self._storage, self._slots, self._watchdog = work, storage, slots, watchdog
        self._retries, self._deaths = worker_retries, Counter[Name]()  # of workers since their trial last got further
        self._problem: Exception | None = None
        self._given_up = 0  # trials that failed since any trial last reported
        self.at_work: set[Name] = set()  # the trials whose workers are running

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.at_work.add(_name(trial))
        self._watchdog.started(_name(trial), _job(self._work, trial.config["stage"]).trials.record)
        self._count()

    def _count(self) -> None:
        self._work.occupied(len(self.at_work), self._slots.count())

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self._given_up = 0
        self._watchdog.reported(_name(trial))

    def on_checkpoint(self, iteration: int, trials: list, trial: Any, checkpoint: tune.Checkpoint, **info: Any) -> None:
        try:
            stage, number = _name(trial)
            enter_checkpoint(_job(self._work, stage), self._storage, number, trial.last_result["epoch"],
                             self._storage.relative(checkpoint.path))
        except Exception as error:  # Tune would only log it
            self._problem = error

    def on_trial_save(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._watchdog.saved(_name(trial))
        if self._problem is not None:
            raise self._problem

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has ended normally: delete Tune's files of it."""
        stage, number = _name(trial)
        self.at_work.discard((stage, number))
        self._count()
        _forget(self._storage, trial.storage.experiment_dir_name, trial.storage.trial_dir_name)
        checkpoint = _job(self._work, stage).trials.record.trials[number].checkpoint
        if checkpoint and _run_of(checkpoint["path"]):
            _forget(self._storage, *Path(checkpoint["path"]).parts[1:3])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial's worker died, or could not save. The trial is handed out again unless its workers died too often."""
        (stage, number), reason = _name(trial), self._watchdog.reason(_name(trial)) or why_worker_died(trial)
        job = _job(self._work, stage)
        manager = job.trials
        self.at_work.discard((stage, number))
        self._count()
        _, not_saved, why = reason.partition(f"{NotSavedError.__name__}: ")
        if not_saved:
            raise StorageError(f"cannot save {stage} trial {number}: {why}; {KEPT}")
        if manager.take_back(number):
            del self._deaths[stage, number]
            return
        self._deaths[stage, number] += 1
        if self._deaths[stage, number] <= self._retries and manager.take_back(number, without_progress=True):
            return
        self._given_up += 1
        if self._given_up == TRIES:
            raise StudyFailedError(f"the workers of {TRIES} trials in a row died before any trial reported, last with: "
                                   f"{reason}; {KEPT}")
        if job.needed and number not in job.set_aside:
            # The study would end with it: try it once more when the others have ended, whatever killed its workers now.
            job.set_aside.add(number)
            manager.running.discard(number)
        elif manager.record.trials[number].state == "complete":
            raise StudyFailedError(f"the workers of {stage} trial {number} die before its results are saved: {reason}; "
                                   f"{KEPT}")
        else:
            manager.fail(number, reason)


def trial_config(job: Job, trial: TrialState, storage: Storage) -> dict[str, Any]:
    """Return a trial's configuration for its worker. Without a complete checkpoint (its mark is missing), the trial
    starts from scratch."""
    checkpoint = storage.checkpoint(trial.checkpoint["path"], CHECKPOINT_MARK) if trial.checkpoint else None
    return {"stage": job.stage, "loop": job.loop, "task": job.task, "number": trial.number,
            "parameters": trial.parameters, "seed": trial.seed, "view_seed": trial.view_seed, "checkpoint": checkpoint}


def reported(result: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a report that kdstudy uses, without those that Ray adds."""
    return {name: result[name] for name in REPORTED if name in result}


def enter_checkpoint(job: Job, storage: Storage, number: int, epoch: int, path: str, tidied: bool = False) -> None:
    """Record a trial's checkpoint by its path relative to the study, and delete the previous one.

    A last checkpoint that is a result is first copied to the stage's own folder. tidied: whether Ray itself deletes
    old checkpoints of the current run."""
    manager = job.trials
    earlier, kept = manager.record.trials[number].checkpoint, path
    if manager.has_results and epoch == manager.epochs:
        kept = storage.keep(job.results, path, manager.record.path.parent / "runs" / f"{number:03d}")
    manager.checkpoint(number, epoch, kept)
    if earlier and _run_of(earlier["path"]) and earlier["path"] != path:
        # Of an earlier run, delete the trial's whole folder; of the current run, only the old checkpoint.
        below = Path(earlier["path"]).parts[1:]
        if _run_of(earlier["path"]) != _run_of(path):
            _forget(storage, *below[:2])
        elif not tidied:
            _forget(storage, *below)


def _forget(storage: Storage, *below: str) -> None:
    """Delete checkpoints while a stage runs: those of 100 trials of a large model fill a disk."""
    with contextlib.suppress(StudyFailedError):  # what remains is deleted when the stage is done
        storage.forget_tune(*below)


def _job(work: Work, stage: str) -> Job:
    return next(job for job in work.jobs if job.stage == stage)


def _name(trial: Any) -> Name:
    return trial.config["stage"], trial.config["number"]


def _run_of(checkpoint: str) -> str | None:
    """The Tune run that a checkpoint belongs to, or None if it was copied to the stage's folder."""
    first, run, *_ = Path(checkpoint).parts
    return run if first == TUNE else None


def run_trials(work: Work, storage: Storage, share: Share, worker_retries: int,
               trainable: type[tune.Trainable] = AnyLoopTrainable, slots: Slots | None = None,
               watchdog: Watchdog | None = None) -> None:
    """Run all trials of `work`.

    storage: the study's. slots: the number of concurrent trials and the refused nodes, if these change. watchdog: ends
    workers that hang.

    If Tune raises an exception, resume from the records, as long as that makes progress. Without progress, rerun the
    interrupted trials one at a time, and mark a trial as failed if it repeatedly crashes Ray while running alone.
    Raises InterruptedStudyError if the user stops the study, StorageError if storage cannot be written,
    StudyFailedError if Ray keeps failing and no single trial causes it.
    """
    slots, watchdog = slots or Slots(share.concurrent), watchdog or Watchdog()
    stuck: Counter[Name] = Counter()  # consecutive Ray failures during which the trial made no progress
    in_vain = 0
    work.advance()
    while not work.is_ended():
        before, one_by_one = _reached(work), max(stuck.values(), default=0) >= TRIES - 1
        problem, at_work = _try(work, storage, share, worker_retries, trainable,
                                OneSlot(slots) if one_by_one else slots, watchdog, only_cut_off=one_by_one)
        for job in _open(work):
            job.trials.reopen()
        work.advance()
        if work.is_ended():
            return
        after = _reached(work)
        in_vain = in_vain + 1 if after == before else 0
        stuck = Counter({trial: stuck[trial] + 1 for trial in at_work if after[trial] == before.get(trial, NOWHERE)}
                        if problem else {})
        if (one_by_one or share.concurrent == 1) and _fail_culprit(work, stuck, problem):
            in_vain = 0
        if in_vain == TRIES:
            raise StudyFailedError(f"Ray Tune failed {TRIES} times without progress, last with: "
                                   f"{problem or UNFINISHED}; {KEPT}")
        for job in _open(work):
            job.trials.record.begin_session(after=problem or UNFINISHED)


def _open(work: Work) -> list[Job]:
    return [job for job in work.jobs if job.open]


def _fail_culprit(work: Work, stuck: Counter[Name], problem: str | None) -> bool:
    """Mark a trial as failed that ran alone each time Ray failed. Returns whether there is one."""
    managers = {job.stage: job.trials for job in work.jobs}
    culprits = [(stage, number) for (stage, number), times in stuck.items()
                if times >= TRIES and managers[stage].record.trials[number].state == "running"]
    for stage, number in culprits:
        manager = managers[stage]
        manager.fail(number, f"Ray failed {TRIES} times in a row while it ran: {problem}")
    return bool(culprits)


def _reached(work: Work) -> dict[Name, tuple[int, str]]:
    """Return each trial's progress: its last epoch and its state."""
    return {(job.stage, trial.number): (trial.epoch, trial.state)
            for job in work.jobs for trial in job.trials.record.trials.values()}


def _try(work: Work, storage: Storage, share: Share, worker_retries: int, trainable: type[tune.Trainable],
         slots: Slots, watchdog: Watchdog, only_cut_off: bool) -> tuple[str | None, set[Name]]:
    """Let Tune run the jobs until all end or it fails. Returns why it failed and which trials were running."""
    callback, problem = _JobCallback(work, storage, slots, worker_retries, watchdog), None
    work.occupied(0, slots.count())
    with interrupts_collected(work.interrupted) as interrupted:
        searcher = _JobSearcher(work, storage, slots, interrupted, only_cut_off)
        try:
            _fit(storage, share, trainable, searcher, _JobScheduler(work, slots, watchdog), callback)
        except Exception as error:
            check_own_ray()
            problem = reason_of(error)
    if interrupted:
        raise InterruptedStudyError
    return problem, callback.at_work


def _fit(storage: Storage, share: Share, trainable: type[tune.Trainable], searcher: _JobSearcher,
         scheduler: _JobScheduler, callback: _JobCallback) -> None:
    storage_path, filesystem = storage.tune_storage()
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['stage']}-{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name=f"{storage.tune_runs():03d}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            # The callback retries. Tune counts some deaths twice, and does not retry where a worker that has ended one
            # trial dies before it starts the next.
            failure_config=tune.FailureConfig(max_failures=0),
            # The trainable decides when to save. With num_to_keep Tune would write the state of all trials at every
            # checkpoint, so the callback deletes old checkpoints instead.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[callback],
            verbose=0,
        ),
    )
    tuner.fit()

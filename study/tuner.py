"""TrialBooks run by Ray Tune: searcher, scheduler and callback that only pass on what the books decide."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.cluster import Share
from study.errors import InterruptedStudyError, StudyFailedError
from study.home import Home
from study.search import TrialBook
from trainables.stages import StageTrainable
from trainables.task import Task

DRIVER_TRIES = 3
CHECKPOINT_MARK = "training.json"
RESULT_FILES = ("model.safetensors", "test.parquet")
REPORTED = ("epoch", "train_loss", "hard_loss", "soft_loss", "validation_accuracy", "validation_loss", "agreement",
            "lr", "images_per_second", "seconds", "failure")


class _DriverOnly:
    """Tune copies its arguments and pickles them for a restore that we never use: the book is neither."""

    def __deepcopy__(self, memo: dict) -> "_DriverOnly":
        return self

    def __reduce__(self) -> tuple:
        return _DriverOnly, ()


@dataclass
class Job:
    """A stage's trials: the book that decides on them and the task they share."""

    stage: str
    book: TrialBook
    task: Task


class _JobSearcher(_DriverOnly, Searcher):
    """Asks the books for trials, the first one first. Nothing is saved: the records hold all there is."""

    def __init__(self, jobs: list[Job], home: Home):
        super().__init__(metric="validation_accuracy", mode="max")
        self._jobs, self._home = jobs, home

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        for job in self._jobs:
            trial = job.book.next()
            if trial is not None:
                return {"stage": job.stage, "number": trial.number, "parameters": trial.parameters,
                        "seed": trial.seed, "view_seed": trial.view_seed,
                        "checkpoint": self._usable_checkpoint(trial.checkpoint)}
        return Searcher.FINISHED

    def _usable_checkpoint(self, checkpoint: dict[str, Any] | None) -> str | None:
        """The folder or URI to continue from. A checkpoint that was cut off lacks its mark: then the trial starts anew.
        """
        return self._home.checkpoint(checkpoint["path"], CHECKPOINT_MARK) if checkpoint else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _JobScheduler(_DriverOnly, FIFOScheduler):
    """Stops what the books stop. Trials never end by themselves, so every report, the last one too, comes by here
    before Tune does anything else."""

    def __init__(self, jobs: list[Job]):
        super().__init__()
        self._books = {job.stage: job.book for job in jobs}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        book = self._books[trial.config["stage"]]
        report = {name: result[name] for name in REPORTED if name in result}
        decision = book.report(trial.config["number"], report)
        return TrialScheduler.CONTINUE if decision == "continue" else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._books[trial.config["stage"]].fail(trial.config["number"], _last_line(trial))


class _JobCallback(_DriverOnly, tune.Callback):
    """Enters checkpoints, relative to the study's folder so that a study can be moved.

    A last checkpoint that counts as a result is first copied out of Tune's folder to the stage's own.
    """

    def __init__(self, jobs: list[Job], home: Home):
        self._books, self._home = {job.stage: job.book for job in jobs}, home

    def on_checkpoint(self, iteration: int, trials: list, trial: Any, checkpoint: tune.Checkpoint, **info: Any) -> None:
        book, number, epoch = self._books[trial.config["stage"]], trial.config["number"], trial.last_result["epoch"]
        path = self._home.relative(checkpoint.path)
        if book.has_results and epoch == book.epochs:
            path = self._home.keep(RESULT_FILES, path, book.record.path.parent / "runs" / f"{number:03d}")
        book.checkpoint(number, epoch, path)


def run_trials(jobs: list[Job], home: Home, share: Share, worker_retries: int,
               trainable: type[tune.Trainable] = StageTrainable) -> None:
    """Run until all books are complete. `home` is the study's; `trainable` takes the tasks of all jobs, by stage.

    An exception out of Tune becomes a resume from the records, a bounded number of times. Raises
    InterruptedStudyError where somebody stops it.
    """
    failures: list[str] = []
    while not all(job.book.complete for job in jobs):
        if len(failures) == DRIVER_TRIES:
            raise StudyFailedError(f"Ray Tune failed {DRIVER_TRIES} times, last with: {failures[-1]}; what finished "
                                   "is kept, run the same command again to go on")
        if failures:
            jobs = [replace(job, book=job.book.reopened()) for job in jobs]
            for job in jobs:
                job.book.record.begin_session(after=failures[-1])
        try:
            with _interrupts() as interrupted:
                _fit(jobs, home, share, worker_retries, trainable)
        except Exception as error:
            if interrupted:
                raise InterruptedStudyError from None
            failures.append(" ".join(str(error).split())[:200])
            continue
        if not all(job.book.complete for job in jobs):
            if interrupted:
                raise InterruptedStudyError
            failures.append("trials were left unfinished")


def _fit(jobs: list[Job], home: Home, share: Share, worker_retries: int, trainable: type[tune.Trainable]) -> None:
    with_tasks = tune.with_parameters(trainable, task={job.stage: job.task for job in jobs})
    storage_path, filesystem = home.tune_storage()
    tuner = tune.Tuner(
        tune.with_resources(with_tasks, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=_JobSearcher(jobs, home),
            scheduler=_JobScheduler(jobs),
            num_samples=-1,
            max_concurrent_trials=share.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['stage']}-{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name=f"{home.tune_runs():03d}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=worker_retries),
            # The trainable itself says when it is to be saved.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[_JobCallback(jobs, home)],
            verbose=0,
        ),
    )
    tuner.fit()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, and at the first asks Tune to end its trials in order; a second one ends at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own word for an orderly end

    earlier = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: None)}  # until Tune has its own
    earlier |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _last_line(trial: Any) -> str:
    """What Tune says of a trial whose worker died: the last line, the others are its stack."""
    path = Path(trial.error_file) if trial.error_file else None
    text = path.read_text(errors="replace") if path and path.exists() else str(trial.get_error() or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the worker died"

"""A TrialBook run by Ray Tune: searcher, scheduler and callback that only pass on what the book decides."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.cluster import Share
from study.errors import InterruptedStudyError, StudyFailedError
from study.search import TrialBook
from trainables.task import Task

DRIVER_TRIES = 3
CHECKPOINT_MARK = "training.json"


class _DriverOnly:
    """Tune copies its arguments and pickles them for a restore that we never use: the book is neither."""

    def __deepcopy__(self, memo: dict) -> "_DriverOnly":
        return self

    def __reduce__(self) -> tuple:
        return _DriverOnly, ()


class _BookSearcher(_DriverOnly, Searcher):
    """Asks the book for trials. Nothing is saved: the record holds all there is."""

    def __init__(self, book: TrialBook, folder: Path):
        super().__init__(metric="validation_accuracy", mode="max")
        self._book, self._folder = book, folder.absolute()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial = self._book.next()
        if trial is None:
            return Searcher.FINISHED
        return {"number": trial.number, "parameters": trial.parameters, "seed": trial.seed,
                "view_seed": trial.view_seed, "checkpoint": self._usable_checkpoint(trial.checkpoint)}

    def _usable_checkpoint(self, checkpoint: dict[str, Any] | None) -> str | None:
        """The folder to continue from. A checkpoint that was cut off lacks its mark: then the trial starts anew."""
        if checkpoint is None:
            return None
        path = self._folder / checkpoint["path"]
        return str(path) if (path / CHECKPOINT_MARK).exists() else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _BookScheduler(_DriverOnly, FIFOScheduler):
    """Stops what the book stops. Trials never end by themselves, so every report, the last one too, comes by here
    before Tune does anything else."""

    def __init__(self, book: TrialBook):
        super().__init__()
        self._book = book

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        names = ("epoch", "train_loss", "hard_loss", "soft_loss", "validation_accuracy", "validation_loss",
                 "agreement", "lr", "images_per_second", "seconds", "failure")
        decision = self._book.report(trial.config["number"], {name: result[name] for name in names if name in result})
        return TrialScheduler.CONTINUE if decision == "continue" else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._book.fail(trial.config["number"], _last_line(trial))


class _BookCallback(_DriverOnly, tune.Callback):
    """Enters checkpoints, relative to the stage's folder so that a study can be moved."""

    def __init__(self, book: TrialBook, folder: Path):
        self._book, self._folder = book, folder.absolute()

    def on_checkpoint(self, iteration: int, trials: list, trial: Any, checkpoint: tune.Checkpoint, **info: Any) -> None:
        path = Path(checkpoint.path).relative_to(self._folder)
        self._book.checkpoint(trial.config["number"], trial.last_result["epoch"], str(path))


def run_trials(book: TrialBook, trainable: type[tune.Trainable], task: Task, folder: Path, share: Share, *,
               checkpoint_every: int, worker_retries: int) -> None:
    """Run until the book is complete. `folder` is the stage's own.

    An exception out of Tune becomes a resume from the record, a bounded number of times. Raises
    InterruptedStudyError where somebody stops it.
    """
    failures = []
    while not book.complete:
        if len(failures) == DRIVER_TRIES:
            raise StudyFailedError(f"Ray Tune failed {DRIVER_TRIES} times, last with: {failures[-1]}; what finished "
                                   "is kept, run the same command again to go on")
        book = book.reopened() if failures else book
        try:
            with _interrupts() as interrupted:
                _fit(book, trainable, task, folder, share, checkpoint_every, worker_retries, len(failures))
        except Exception as error:
            failures.append(" ".join(str(error).split())[:200])
            book.record.begin_session(after=failures[-1])
            continue
        if interrupted and not book.complete:
            raise InterruptedStudyError
        if not book.complete:
            failures.append("trials were left unfinished")


def _fit(book: TrialBook, trainable: type[tune.Trainable], task: Task, folder: Path, share: Share,
         checkpoint_every: int, worker_retries: int, attempt: int) -> None:
    bound = tune.with_parameters(trainable, task=task)
    tuner = tune.Tuner(
        tune.with_resources(bound, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=_BookSearcher(book, folder),
            scheduler=_BookScheduler(book),
            num_samples=-1,
            max_concurrent_trials=share.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            name=f"{len(list((folder / 'tune').glob('*'))):02d}-{attempt}",
            storage_path=str((folder / "tune").absolute()),
            failure_config=tune.FailureConfig(max_failures=worker_retries),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1,
                checkpoint_frequency=max(1, checkpoint_every // task.report_every),
                checkpoint_at_end=book.keep_weights,
            ),
            callbacks=[_BookCallback(book, folder)],
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

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier[signal.SIGUSR1] = signal.getsignal(signal.SIGUSR1)
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _last_line(trial: Any) -> str:
    """What Tune says of a trial whose worker died: the last line, the others are its stack."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the worker died"


def forget_tune(folder: Path) -> None:
    """Remove what Tune left behind once a stage is done; weights worth keeping have been moved by then."""
    shutil.rmtree(folder / "tune", ignore_errors=True)

"""Train a teacher on several workers with distributed data parallelism, by Ray Train's TorchTrainer."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from kdstudy.store.storage import Storage
from kdstudy.trainables.ddp import train
from kdstudy.trainables.messages import one_line
from kdstudy.tune.cluster import Share
from kdstudy.tune.own_ray import check_own_ray
from kdstudy.tune.reasons import reason_of
from kdstudy.tune.tuner import Job, enter_checkpoint, reported, trial_config

POLL_SECONDS = 0.5
ANSWER_WITHIN = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"


@dataclass(frozen=True)
class _Report:
    """A report of the first worker. checkpoint: its path, or None."""

    metrics: dict[str, Any]
    checkpoint: str | None


@dataclass(frozen=True)
class _Failure:
    """Why workers have failed, in one line."""

    reason: str


class _Relay(UserCallback):
    """Forwards reports and failures of the workers from Ray Train's controller process."""

    def __init__(self, heard: Queue):
        self.heard = heard

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.heard.put(_Report(metrics[0], checkpoint.path if checkpoint else None))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = next(iter(worker_exceptions.values()))
        self.heard.put(_Failure(one_line(error)))


def run_parallel(job: Job, storage: Storage, share: Share, workers: int, retries: int, hang_minutes: float,
                 note: Callable[[str], None]) -> None:
    """Run a stage's trials one after the other, each on `workers` workers. Permanent errors are recorded as the
    trial's failure.

    hang_minutes: Ray Train restarts the workers if one has not answered for so long. A worker answers while it trains;
    one that waits within its training is noticed by the others, when torch's half an hour for an exchange is over.
    note: called with a message when workers have failed and begin again."""
    os.environ[ANSWER_WITHIN] = str(60 * hang_minutes)
    while trial := job.trials.next():
        failures = 0
        try:
            for heard in _heard(storage, trial_config(job, trial, storage), share, workers, retries):
                if isinstance(heard, _Failure):
                    failures += 1
                    if failures <= retries:
                        note(f"{job.stage} trial {trial.number}: one of its {workers} workers failed ({heard.reason}); "
                             "all of them go on from the last checkpoint")
                    continue
                job.trials.report(trial.number, reported(heard.metrics))
                if heard.checkpoint:
                    enter_checkpoint(job, storage, trial.number, heard.metrics["epoch"],
                                     storage.relative(heard.checkpoint), tidied=True)
        except ray.train.TrainingFailedError as error:
            job.trials.fail(trial.number, reason_of(error))


def _heard(storage: Storage, config: dict[str, Any], share: Share, workers: int,
           retries: int) -> Iterator[_Report | _Failure]:
    """Yield the workers' reports and failures as they arrive. Raises TrainingFailedError."""
    heard, problem = Queue(actor_options={"num_cpus": 0}), []
    storage_path, filesystem = storage.tune_storage()
    trainer = TorchTrainer(
        train, train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=share.gpus > 0,
                                     resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus
                                                                                 else {})),
        run_config=RunConfig(
            name=f"{storage.tune_runs():03d}", storage_path=storage_path, storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=retries), checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_Relay(heard)],
        ),
    )

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            problem.append(error)

    # In a separate thread, because this one must handle Ctrl-C and write the record.
    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    while fitting.is_alive() or not heard.empty():
        check_own_ray()
        try:
            yield heard.get(timeout=POLL_SECONDS)
        except Empty:
            continue
    heard.shutdown()
    if problem:
        check_own_ray()
        raise problem[0]

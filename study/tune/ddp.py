"""Train a teacher on several workers with distributed data parallelism, by Ray Train's TorchTrainer."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from kdstudy.store.storage import Storage
from kdstudy.trainables.ddp import train
from kdstudy.tune.cluster import Share
from kdstudy.tune.own_ray import check_own_ray
from kdstudy.tune.reasons import reason_of
from kdstudy.tune.tuner import Job, enter_checkpoint, reported, trial_config

POLL_SECONDS = 0.5
ANSWER_WITHIN = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"


class _Relay(UserCallback):
    """Forwards the first worker's reports from Ray Train's controller process."""

    def __init__(self, reports: Queue):
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.reports.put((metrics[0], checkpoint.path if checkpoint else None))


def run_parallel(job: Job, storage: Storage, share: Share, workers: int, retries: int, hang_minutes: float) -> None:
    """Run a stage's trials one after the other, each on `workers` workers. Permanent errors are recorded as the
    trial's failure.

    hang_minutes: Ray Train restarts the workers if one has not answered for so long. A worker answers while it trains;
    one that waits within its training is noticed by the others, when torch's half an hour for an exchange is over."""
    os.environ[ANSWER_WITHIN] = str(60 * hang_minutes)
    while trial := job.trials.next():
        try:
            for report, path in _reports(storage, trial_config(job, trial, storage), share, workers, retries):
                job.trials.report(trial.number, reported(report))
                if path:
                    enter_checkpoint(job, storage, trial.number, report["epoch"], storage.relative(path), tidied=True)
        except ray.train.TrainingFailedError as error:
            job.trials.fail(trial.number, reason_of(error))


def _reports(storage: Storage, config: dict[str, Any], share: Share, workers: int,
             retries: int) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the workers' reports as they arrive, each with the path of its checkpoint or None.

    Raises TrainingFailedError."""
    reports, problem = Queue(actor_options={"num_cpus": 0}), []
    storage_path, filesystem = storage.tune_storage()
    trainer = TorchTrainer(
        train, train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=share.gpus > 0,
                                     resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus
                                                                                 else {})),
        run_config=RunConfig(
            name=f"{storage.tune_runs():03d}", storage_path=storage_path, storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=retries), checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_Relay(reports)],
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
    while fitting.is_alive() or not reports.empty():
        check_own_ray()
        try:
            yield reports.get(timeout=POLL_SECONDS)
        except Empty:
            continue
    reports.shutdown()
    if problem:
        check_own_ray()
        raise problem[0]

"""One model trained by several processes, with a GPU each, which divide every batch among them.

`train` runs in each worker of Ray Train's TorchTrainer, which joins the workers to a process group.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

from kdstudy.trainables.loop import Batch, Training
from kdstudy.trainables.losses.total import Loss
from kdstudy.trainables.object_store import fetch_task
from kdstudy.trainables.task import Task, save, start
from kdstudy.trainables.trainable import continue_from, describe, is_checkpoint_due, not_finite, where_it_runs


class ParallelTraining(Training):
    """One process's part in a training. It computes its share of every batch.

    DistributedDataParallel averages the gradients over the processes. Shares are weighted by their size, so each step
    is that of the whole batch. On GPUs batch norm uses the whole batch too; on CPUs, for which torch has no such layer,
    each process's own share.
    """

    _alone: Callable | None = None  # what it computes with by itself, once it has joined the others

    def join_group(self) -> None:
        """Train together with the other processes from now on. Call it when the weights are those to start from."""
        if self.device.type == "cuda":
            self.model.net = convert_sync_batchnorm(self.model.net)
        self._alone = self.forward
        self.forward = DistributedDataParallel(self._alone)
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self.process = (self._rank,) if self._rank else ()

    def _begin_phase(self) -> None:
        super()._begin_phase()
        if self._alone is not None:  # it exchanges only the gradients of what learned when it was made
            self.forward = DistributedDataParallel(self._alone)

    def _backward(self, batch: Batch, share: float, last: bool) -> Loss:
        indices, unlabelled = batch
        own = indices[self._rank::self._size]
        weight = len(own) * self._size / len(indices)
        with contextlib.nullcontext() if last else self.forward.no_sync():
            # If a last batch is too small for all processes, those without a share take one image with weight 0.
            loss = self._loss(own if len(own) else indices[:1], unlabelled)
            (loss.total * (weight * share)).backward()
        parts = [part for part in loss if part is not None]
        values = torch.stack(parts).detach() * weight / self._size
        dist.all_reduce(values)
        return Loss(*values[: len(parts)], *[None] * (3 - len(parts)))


def train(config: dict[str, Any]) -> None:
    """One worker's part in a trial. It reports to Ray Train what StudyTrainable reports to Tune.

    config: task (the reference that `put_task` returned), parameters, seed, view_seed and checkpoint, as a trial's. An
    error at the start occurs in all workers and is reported as `failure`. A later error is raised, since the other
    workers would wait for this one: Ray Train then restarts all of them from the last checkpoint.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    task = fetch_task(config["task"])
    try:
        training = _begin(task, config)
    except Exception as error:
        ray.train.report({"epoch": 0, "failure": describe(error)})
        return
    while not training.finished and _continue(training, task):
        pass


def _begin(task: Task, config: dict[str, Any]) -> ParallelTraining:
    def begin() -> ParallelTraining:
        return start(task, config["parameters"], seed=config["seed"], view_seed=config["view_seed"],
                     kind=ParallelTraining)

    training, restarted = begin(), ray.train.get_checkpoint()
    checkpoint = restarted.path if restarted else config["checkpoint"]
    if checkpoint and not continue_from(training, checkpoint):
        training = begin()
    training.join_group()
    return training


def _continue(training: ParallelTraining, task: Task) -> bool:
    """Train for `task.report_every` epochs and report them. Returns False if the training has failed."""
    report = training.run(task.report_every)
    report |= {"failure": not_finite(report), "where": where_it_runs()}
    first = dist.get_rank() == 0
    failed = torch.tensor(float(report["failure"] is not None and first), device=training.device)
    dist.broadcast(failed, 0)  # all processes stop, or none
    with tempfile.TemporaryDirectory() as folder:
        saved = first and not failed and is_checkpoint_due(training, task)
        if saved:
            save(training, task, Path(folder))
        ray.train.report(report, ray.train.Checkpoint(folder) if saved else None,
                         checkpoint_dir_name=f"epoch-{training.epoch:06d}" if saved else None)
    return not failed

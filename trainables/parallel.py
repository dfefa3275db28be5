"""One model trained by several processes, a GPU each: the loop of every other run, with each batch divided among them.

`train` runs in each worker of Ray Train's TorchTrainer, which joins them to a process group.
"""

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

from kdstudy.trainables.loop import Training
from kdstudy.trainables.losses import Loss
from kdstudy.trainables.stages import fetch, where_it_runs
from kdstudy.trainables.task import Task, save, start
from kdstudy.trainables.trainable import continue_from, describe, is_checkpoint_due, not_finite


class ParallelTraining(Training):
    """A process's part of a training: it takes its share of every batch, and gradients are averaged over the processes
    (DistributedDataParallel), weighted so that the step is that of the whole batch. On GPUs, batch norm sees the whole
    batch too; on CPUs, where torch has no such layer, each process's own share.
    """

    def share_out(self) -> None:
        """Begin to train together; once weights are as they are to begin with."""
        if self.device.type == "cuda":
            self.model.net = convert_sync_batchnorm(self.model.net)
        self.forward = DistributedDataParallel(self.forward)
        self._rank, self._size = dist.get_rank(), dist.get_world_size()

    def _step(self, indices: torch.Tensor, unlabelled: torch.Tensor | None) -> Loss:
        own = indices[self._rank::self._size]
        weight = len(own) * self._size / len(indices)
        # A last batch may be too small for all; whoever gets nothing of it takes part without a say.
        loss = self._loss(own if len(own) else indices[:1], unlabelled)
        self._update(loss.total * weight)
        parts = [part for part in loss if part is not None]
        values = torch.stack(parts).detach() * weight / self._size
        dist.all_reduce(values)
        return Loss(*values[: len(parts)], *[None] * (3 - len(parts)))


def train(config: dict[str, Any]) -> None:
    """A worker's part of one trial; reports as the other trainables do, to Ray Train.

    config: task, parameters, seed, view_seed and checkpoint, as a trial's. What goes wrong at the start goes wrong in
    all workers, and is reported as `failure`. Later the others wait for the one: it raises, and Ray Train starts all of
    them anew from the last checkpoint.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    task = fetch(config["task"])
    try:
        training = _begin(task, config)
    except Exception as error:
        ray.train.report({"epoch": 0, "failure": describe(error)})
        return
    while not training.finished and _go_on(training, task):
        pass


def _begin(task: Task, config: dict[str, Any]) -> ParallelTraining:
    def begin() -> ParallelTraining:
        return start(task, config["parameters"], seed=config["seed"], view_seed=config["view_seed"],
                     kind=ParallelTraining)

    training, restarted = begin(), ray.train.get_checkpoint()
    checkpoint = restarted.path if restarted else config["checkpoint"]
    if checkpoint and not continue_from(training, checkpoint):
        training = begin()
    training.share_out()
    return training


def _go_on(training: ParallelTraining, task: Task) -> bool:
    """Train as many epochs as are reported at a time, and report them; False where that is the end of it."""
    report = training.run(task.report_every)
    report |= {"failure": not_finite(report), "where": where_it_runs()}
    first = dist.get_rank() == 0
    failed = torch.tensor(float(report["failure"] is not None and first), device=training.device)
    dist.broadcast(failed, 0)  # all or none
    with tempfile.TemporaryDirectory() as folder:
        saved = first and not failed and is_checkpoint_due(training, task)
        if saved:
            save(training, task, Path(folder))
        ray.train.report(report, ray.train.Checkpoint(folder) if saved else None,
                         checkpoint_dir_name=f"epoch-{training.epoch:06d}" if saved else None)
    return not failed

"""A search as Ray's documentation shows it, beside ours: the same trials of the `digits` study to the same epoch.

The documentation's way is a function that builds all it needs, trains with a DataLoader, and after each epoch
reports with a checkpoint of torch.save; a new process for each trial; the teacher in the loop. Here nothing is stopped
early in either, so that both train the same epochs.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray import tune
from scale import OneStage
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.training import Size, task_of, with_logits
from kdstudy.config.sections import Range
from kdstudy.search.manager import TrialManager
from kdstudy.search.proposer import OptunaProposer
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.trainables.object_store import put_task
from kdstudy.trainables.task import Task
from kdstudy.trainables.views import resize
from kdstudy.tune.cluster import Share, connected
from kdstudy.tune.tuner import Job, run_trials

TRIALS = 8
REPORT_EVERY = 10  # epochs, as `digits` has it; the documentation's way reports, and saves, after each
LRS = np.geomspace(3e-4, 1e-2, TRIALS)


def documented(config: dict[str, Any], task: Task) -> None:
    """Train a student for some epochs, as in the examples of Ray Tune."""
    torch.set_num_threads(1)
    teacher = task.load_teacher(torch.device("cpu"))[0].model.eval()
    student = task.build_model(task.model, seed=1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config["lr"], weight_decay=0.05)

    def loader(images: Any, shuffle: bool) -> DataLoader:
        return DataLoader(TensorDataset(torch.tensor(images.images), torch.tensor(images.labels)), shuffle=shuffle,
                          batch_size=task.training.batch_size)

    train, validation = loader(task.train, True), loader(task.validation, False)
    for epoch in range(1, config["epochs"] + 1):
        student.train()
        for images, labels in train:
            images = images.float() / 255
            with torch.no_grad():
                targets = teacher(resize(images, teacher.size))
            logits = student(resize(images, student.size))
            soft = F.kl_div(F.log_softmax(logits / 4, 1), F.log_softmax(targets / 4, 1), reduction="batchmean",
                            log_target=True)
            loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * 16 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        student.eval()
        with torch.no_grad():
            right = sum((student(resize(images.float() / 255, student.size)).argmax(1) == labels).sum().item()
                        for images, labels in validation)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": student.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder) / "state.pt")
            tune.report({"validation_accuracy": right / len(task.validation), "epoch": epoch},
                        checkpoint=tune.Checkpoint.from_directory(folder))


def peer(size: Size, epochs: int, slots: int) -> dict[str, float]:
    """Wall time in milliseconds for each epoch of all trials, both ways, with Ray started beforehand."""
    task = replace(task_of(size, epochs=epochs), threads=1, report_every=REPORT_EVERY, checkpoint_every=epochs)
    with tempfile.TemporaryDirectory() as folder, connected():
        share = Share(cpus=1, gpus=0, concurrent=slots)
        ways = (("documented", _documented), ("ours", _ours))
        return {name: 1000 * way(task, epochs, Path(folder) / name, share) / (TRIALS * epochs) for name, way in ways}


def _documented(task: Task, epochs: int, folder: Path, share: Share) -> float:
    """Seconds."""
    began = time.perf_counter()
    found = tune.Tuner(
        tune.with_parameters(documented, task=task),
        param_space={"lr": tune.grid_search(LRS.tolist()), "epochs": epochs},
        tune_config=tune.TuneConfig(max_concurrent_trials=share.concurrent),
        run_config=tune.RunConfig(storage_path=str(folder), name="documented", verbose=0)).fit()
    seconds = time.perf_counter() - began
    if found.errors:
        raise RuntimeError(found.errors[0])
    return seconds


def _ours(task: Task, epochs: int, folder: Path, share: Share) -> float:
    """Seconds, in which the teacher's logits are computed too."""
    began = time.perf_counter()
    space = {"lr": Range(log=(float(LRS[0]), float(LRS[-1])))}
    default = {"lr": 1e-3, "alpha": 0.5, "temperature": 4.0}
    proposer = OptunaProposer(space, default, TRIALS, TRIALS - 1, 0, "distill", share.concurrent)
    manager = TrialManager(Record(folder / "record.jsonl"), proposer, epochs=epochs, rungs=())
    job = Job("distill", "distill", manager, put_task(with_logits(task, torch.device("cpu")), {}))
    run_trials(OneStage([job]), Storage(folder), share, worker_retries=0)
    seconds = time.perf_counter() - began
    if not all(trial.state == "complete" and trial.epoch == epochs for trial in manager.record.trials.values()):
        raise RuntimeError("trials of the search failed")
    return seconds

"""Several trials on one GPU: how many images a second they train together."""

import multiprocessing
import time
from typing import Any

import torch

from benchmarks.training import LR, SEEDS, Size, task_of
from kdstudy.trainables.distill import start_distillation

TOGETHER = (1, 2, 4)  # trials on one GPU: 1, 1/2 and 1/4 each


def sharing(size: Size, seconds: float) -> dict[str, float]:
    """Images per second of all trials together, by their number."""
    return {f"{count} at a time": _together(size, count, seconds) for count in TOGETHER}


def _together(size: Size, count: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    queue, ready = context.Queue(), context.Barrier(count)
    processes = [context.Process(target=_train, args=(size, seconds, ready, queue)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return sum(found)


def _train(size: Size, seconds: float, ready: Any, queue: Any) -> None:
    training = start_distillation(task_of(size), {"alpha": 0.0, "lr": LR}, **SEEDS)
    training.train_epoch()
    _wait()
    ready.wait(300)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        training.train_epoch()
        images += size.images
        _wait()
    queue.put(images / (time.perf_counter() - began))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

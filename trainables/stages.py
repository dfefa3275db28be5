"""One trainable for trials of several stages, so that they can share the machine and its warm workers."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from kdstudy.trainables.answers import TeacherLogitsTrainable
from kdstudy.trainables.baseline import BaselineTrainable
from kdstudy.trainables.distill import DistillTrainable
from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import Task
from kdstudy.trainables.teacher import TeacherTrainable
from kdstudy.trainables.trainable import StudyTrainable

TRAINABLES: dict[str, type[StudyTrainable]] = {
    "teacher": TeacherTrainable,
    "baseline": BaselineTrainable,
    "teacher_logits": TeacherLogitsTrainable,
    "distill": DistillTrainable,
    "finalists_baseline": BaselineTrainable,
    "finalists": DistillTrainable,
    "confirm_baseline": BaselineTrainable,
    "confirm": DistillTrainable,
}
IMAGES = ("train", "validation", "test", "unlabelled")  # a Task's, which those of other stages share


class StageTrainable(StudyTrainable):
    """A trial of whichever stage its config names under `stage`, with that stage's Task under `task`, as `put` put it
    into Ray's object store."""

    def setup(self, config: dict) -> None:
        self._tasks: dict[str, Task] = {}
        self._where = where_it_runs()
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.stage = new_config["stage"]
        if self.stage not in self._tasks:
            self._tasks[self.stage] = fetch(new_config["task"])
        self.task = self._tasks[self.stage]
        return super().reset_config(new_config)

    def step(self) -> dict:
        return super().step() | {"where": self._where}

    def start(self, config: dict) -> Training:
        return TRAINABLES[self.stage].start(self, config)

    def write(self, folder: Path) -> None:
        TRAINABLES[self.stage].write(self, folder)


def put(task: Task, known: dict[int, Any]) -> ray.ObjectRef:
    """A task in the object store, where images that several tasks share lie once; `known` remembers which do."""
    shared = {}
    for name in IMAGES:
        if (images := getattr(task, name)) is not None:
            if id(images) not in known:
                known[id(images)] = images, ray.put(images)  # held, so that no other gets its id
            shared[name] = known[id(images)][1]
    return ray.put(replace(task, **shared))


def fetch(reference: ray.ObjectRef) -> Task:
    """The task that `put` put there, its arrays not copied."""
    task = ray.get(reference)
    return replace(task, **{name: ray.get(getattr(task, name)) for name in IMAGES if getattr(task, name) is not None})


def where_it_runs() -> str:
    """This worker's node and GPUs: "host 1a2b3c4d gpu 0,1"; a host may have several of Ray's nodes."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return " ".join([socket.gethostname(), context.get_node_id()[:8], *(["gpu " + ",".join(gpus)] if gpus else [])])

"""Tasks in Ray's object store, where tasks that share images store them only once."""

from dataclasses import replace
from typing import Any

import ray

from kdstudy.trainables.task import Task

IMAGE_SETS = ("train", "validation", "test", "unlabelled")  # the fields of a Task that tasks share


def put_task(task: Task, known: dict[int, Any]) -> ray.ObjectRef:
    """Put a task into the object store. known: remembers the images that are there already; pass the same dictionary,
    empty at first, for all tasks that may share images."""
    references = {}
    for name in IMAGE_SETS:
        if (images := getattr(task, name)) is not None:
            if id(images) not in known:
                known[id(images)] = images, ray.put(images)  # keeps the images alive, so that no others get their id
            references[name] = known[id(images)][1]
    return ray.put(replace(task, **references))


def fetch_task(reference: ray.ObjectRef) -> Task:
    """The task that `put_task` stored. Its arrays are not copied, and are read-only."""
    task = ray.get(reference)
    images = {name: ray.get(stored) for name in IMAGE_SETS if (stored := getattr(task, name)) is not None}
    return replace(task, **images)

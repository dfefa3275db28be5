"""The distillation: the student learns from labels and from the teacher's logits, or features, for the very same views.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kdstudy.trainables import losses
from kdstudy.trainables.controls import CHANGES
from kdstudy.trainables.device import default_device
from kdstudy.trainables.loop import Objective, Targets, Training
from kdstudy.trainables.settings import MAIN_TEACHER
from kdstudy.trainables.task import Task, start
from kdstudy.trainables.teacher_logits import CachedLogits, LiveLogits
from kdstudy.trainables.top_k import truncate
from kdstudy.trainables.trainable import StudyTrainable
from kdstudy.trainables.views import Views


def start_distillation(task: Task, parameters: dict, *, seed: int, view_seed: int) -> Training:
    """Start a distillation run.

    parameters: alpha, lr, loss (the usual one unless given) with its own parameters, teacher (where the task has
    several), and whatever training settings the search varies. Raises ValueError for a loss of the user's own that
    cannot be imported, and for a loss or a teacher that the task does not name.
    """
    objective, task = Objective(), with_own_teacher(task, parameters)
    if parameters["alpha"]:
        name = parameters.get("loss", losses.USUAL)
        if name not in losses.LOSSES and name not in task.own_losses:  # of a record that a stranger has written
            raise ValueError(f"loss = {name!r} is not a loss of this study's settings")
        own = {one: parameters[one] for one in losses.parameters_of(name)}
        objective = with_teacher(Objective(parameters["alpha"], losses.find(name), own), task, view_seed)
    return start(task, parameters, seed=seed, view_seed=view_seed, objective=objective)


def with_own_teacher(task: Task, parameters: dict) -> Task:
    """The task with the teacher that a run's parameters name, `main` being the task's own. Raises ValueError where it
    has no such teacher."""
    name = parameters.get("teacher", MAIN_TEACHER)
    if name == MAIN_TEACHER:
        return task
    if name not in task.other_teachers:  # of a record that a stranger has written
        raise ValueError(f"teacher = {name!r} is not a teacher of this study's settings")
    return replace(task, teacher=task.other_teachers[name])


def with_teacher(objective: Objective, task: Task, view_seed: int) -> Objective:
    """Add the teacher to an objective: what the loss reads of it, cached if it is for this view seed, else the teacher
    itself.

    A control's task has that changed; see `kdstudy.trainables.controls`."""
    device, known, teacher = default_device(), task.teacher, None
    reads_features = objective.loss.reads == losses.FEATURES
    labelled, unlabelled = ((known.features, known.unlabelled_features) if reads_features else
                            (known.logits, known.unlabelled_logits))

    def targets(cached: dict[int, np.ndarray], make_views: Callable[..., Views]) -> Targets:
        nonlocal teacher
        if view_seed in cached:
            return CachedLogits(cached[view_seed], device, task.classes)
        teacher = teacher or task.load_teacher(device)
        live = LiveLogits(teacher, lambda size: make_views(size, view_seed, device, for_logits=True))
        if reads_features:
            return live.features
        keep = task.views.kept_logits(task.classes)
        return live if keep is None else lambda view, indices: truncate(live(view, indices), keep)

    own = targets(labelled, task.make_views)
    if task.control:
        own = CHANGES[task.control](own, task.train.labels, task.classes, task.control_seed, device)
    objective = replace(objective, targets=own)
    if reads_features:
        width = labelled[view_seed].shape[2] if view_seed in labelled else sum(
            member.model.feature_width() for member in teacher)
        objective = replace(objective, teacher_features=width)
    if task.unlabelled is None:
        return objective
    size = task.model.image_size or task.image_size
    return replace(objective, unlabelled=task.make_unlabelled_views(size, view_seed, device),
                   unlabelled_targets=targets(unlabelled, task.make_unlabelled_views),
                   unlabelled_ratio=task.unlabelled_ratio)


class DistillTrainable(StudyTrainable):
    """Distils the teacher into the student. Its parameters: those of `start_distillation`; without alpha it is the
    baseline."""

    def start(self, config: dict) -> Training:
        parameters = {"alpha": 0.0} | config["parameters"]
        return start_distillation(self.task, parameters, seed=config["seed"], view_seed=config["view_seed"])

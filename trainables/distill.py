"""The distillation: the student learns from labels and from the teacher's logits for the very same views."""

from trainables.loop import Objective, Targets, Training, default_device
from trainables.task import Task, start
from trainables.teacher_logits import CachedLogits, LiveLogits
from trainables.trainable import StudyTrainable


def start_distillation(task: Task, parameters: dict, *, seed: int, view_seed: int) -> Training:
    """Begin a distillation run. `parameters` hold temperature, alpha, lr and whatever else the search varies."""
    alpha = parameters["alpha"]
    targets = make_targets(task, view_seed) if alpha else None
    objective = Objective(parameters["temperature"], alpha, targets)
    return start(task, parameters, seed=seed, view_seed=view_seed, objective=objective)


def make_targets(task: Task, view_seed: int) -> Targets:
    """The teacher's cached answers where there are any for this view seed, else the teacher itself."""
    device = default_device()
    if view_seed in task.teacher.logits:
        return CachedLogits(task.teacher.logits[view_seed], device)
    teacher = task.load_teacher(device)
    views = task.make_views(teacher.size, view_seed, device)
    return LiveLogits(teacher, views, task.teacher_autocast(device))


class DistillTrainable(StudyTrainable):
    """Distils the teacher into the student. Its parameters: temperature, alpha, lr; alpha = 0 is the baseline."""

    def start(self, config: dict) -> Training:
        parameters = {"temperature": 1.0, "alpha": 0.0} | config["parameters"]
        return start_distillation(self.task, parameters, seed=config["seed"], view_seed=config["view_seed"])

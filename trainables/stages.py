"""One trainable for trials of several stages, so that they can share the machine and its warm workers."""

from trainables.baseline import BaselineTrainable
from trainables.distill import DistillTrainable
from trainables.loop import Training
from trainables.task import Task
from trainables.teacher import TeacherTrainable
from trainables.trainable import StudyTrainable

TRAINABLES: dict[str, type[StudyTrainable]] = {
    "teacher": TeacherTrainable,
    "baseline": BaselineTrainable,
    "distill": DistillTrainable,
    "finalists_baseline": BaselineTrainable,
    "finalists": DistillTrainable,
    "confirm_baseline": BaselineTrainable,
    "confirm": DistillTrainable,
}


class StageTrainable(StudyTrainable):
    """A trial of whichever stage its config names under `stage`; `task` holds one Task per stage."""

    def setup(self, config: dict, task: dict[str, Task]) -> None:
        self.tasks = task
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.task = self.tasks[new_config["stage"]]
        return super().reset_config(new_config)

    def start(self, config: dict) -> Training:
        return TRAINABLES[config["stage"]].start(self, config)

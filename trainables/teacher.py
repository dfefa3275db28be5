"""The teacher: a model trained on labels, with all training images."""

from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import start
from kdstudy.trainables.trainable import StudyTrainable


class TeacherTrainable(StudyTrainable):
    """Trains `task.model` on labels. Its parameters: lr."""

    def start(self, config: dict) -> Training:
        return start(self.task, config["parameters"], seed=config["seed"], view_seed=config["view_seed"])

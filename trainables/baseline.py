"""The baseline: the student trained on labels alone. It is the distillation at alpha = 0, with the same code."""

from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import start
from kdstudy.trainables.trainable import StudyTrainable


class BaselineTrainable(StudyTrainable):
    """Trains the student on labels. Its parameters: lr and whatever else both arms search."""

    def start(self, config: dict) -> Training:
        return start(self.task, config["parameters"], seed=config["seed"], view_seed=config["view_seed"])

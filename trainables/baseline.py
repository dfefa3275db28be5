"""The baseline: the student trained on labels alone, by the code of the distillation with alpha = 0."""

from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import start
from kdstudy.trainables.trainable import StudyTrainable


class BaselineTrainable(StudyTrainable):
    """Trains the student on labels. Its parameters: lr, and whatever training settings the search varies."""

    def start(self, config: dict) -> Training:
        return start(self.task, config["parameters"], seed=config["seed"], view_seed=config["view_seed"])

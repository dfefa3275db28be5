"""One trainable for trials of every loop, so that trials of different stages share the machine and its warm workers."""

from pathlib import Path
from typing import Any

from kdstudy.trainables.baseline import BaselineTrainable
from kdstudy.trainables.distill import DistillTrainable
from kdstudy.trainables.logits_pieces import LogitsPiece, TeacherLogitsTrainable
from kdstudy.trainables.loop import Training
from kdstudy.trainables.object_store import fetch_task
from kdstudy.trainables.task import Task
from kdstudy.trainables.teacher import TeacherTrainable
from kdstudy.trainables.trainable import StudyTrainable, where_it_runs

LOOPS: dict[str, type[StudyTrainable]] = {
    "teacher": TeacherTrainable,
    "baseline": BaselineTrainable,
    "teacher_logits": TeacherLogitsTrainable,
    "distill": DistillTrainable,
}


class AnyLoopTrainable(StudyTrainable):
    """Runs a trial by the loop that its config names.

    Besides what StudyTrainable expects, the config holds: loop, a key of LOOPS; stage, any name for the trials that
    share a task; task, the reference that `put_task` returned for it. Each worker fetches a stage's task only once,
    unless the stage has been opened again with another one.
    """

    def setup(self, config: dict) -> None:
        self._tasks: dict[str, tuple[Any, Task]] = {}  # by stage: the reference, and what it refers to
        self._where = where_it_runs()
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self._loop = new_config["loop"]
        stage, reference = new_config["stage"], new_config["task"]
        if stage not in self._tasks or self._tasks[stage][0] != reference:
            self._tasks[stage] = reference, fetch_task(reference)
        self.task = self._tasks[stage][1]
        return super().reset_config(new_config)

    def step(self) -> dict:
        return super().step() | {"where": self._where}

    # Tune keeps one object per worker, so these call the loop's methods on this object.

    def start(self, config: dict) -> Training | LogitsPiece:
        return LOOPS[self._loop].start(self, config)

    def write(self, folder: Path) -> None:
        LOOPS[self._loop].write(self, folder)

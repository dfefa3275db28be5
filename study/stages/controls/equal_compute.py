"""The control `equal_compute`: the tuned baseline, trained for as long as a distilled run costs."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdstudy.stages import students
from kdstudy.stages.controls.control import Basis, ControlStage, files_of

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


class EqualComputeControl(ControlStage):
    name, kind = "control_equal_compute", "equal_compute"
    arm = loop = "baseline"
    files = files_of(distils=False)

    def inputs(self) -> list[Any]:
        # What the number of epochs follows from, rather than the number, which needs torch.
        teacher = self.context.stage("teacher")
        return [*super().inputs(), [member["model"] for member in teacher.done["members"]], self.config.view_count,
                *([self.config.data.unlabelled] if self.config.data.unlabelled else [])]

    def basis(self) -> Basis | None:
        return self.confirmed("baseline")

    def parameters(self) -> dict[str, Any]:
        return self.basis()["baseline"]

    @cached_property
    def epochs(self) -> int:
        """The epochs of a baseline run that costs what a distilled run costs, in floating-point operations.

        Beside its own training, a distilled run needs the teacher's logits for its views of all its images, and passes
        of the student for those without labels. Training the teacher is not counted.
        """
        from kdstudy.trainables.models import cost  # imports torch

        config, context, splits = self.config, self.context, self.context.splits
        shape = context.shape

        def forward(settings: Any) -> float:
            return cost.forward_flop(cost.without_weights(settings, **shape), shape["channels"])

        own, views = config.train.epochs, config.view_count
        if not context.stage("teacher_logits").fits:
            views = own  # the teacher runs in the loop, in each epoch anew
        epoch = len(splits.student_train) * students.passes(config.train) * forward(context.model("student"))
        logits = views * splits.seen_by_student * sum(map(forward, context.stage("teacher").models))
        return own + max(1, round(own * config.data.unlabelled + logits / epoch))

    def task(self) -> Task:
        # The schedule spans the longer run.
        task = super().task()
        return replace(task, training=task.training.model_copy(update={"epochs": self.epochs}))


STAGES = (EqualComputeControl,)

"""The control `equal_compute`: the tuned baseline, trained for as long as a distilled run costs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdstudy.errors import MissingTeacherError
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
        teacher, config = self._teacher, self.config
        return [*super().inputs(), [member["model"] for member in teacher.done["members"]], self._views,
                *([config.data.unlabelled] if config.data.unlabelled else []),
                *([{"passes": self._passes}] if config.search.freeze else [])]

    @property
    def _teacher(self) -> Any:
        """The stage of the distilled student's teacher; while none is chosen, of the default point's."""
        return students.teacher_of(self.context, self._distilled)

    @property
    def _distilled(self) -> dict[str, Any]:
        """The parameters of the distilled student; while none is chosen, the default point."""
        known = None
        with contextlib.suppress(MissingTeacherError):
            known = self.confirmed("distilled")
        return known["distilled"] if known else self.config.default_parameters("distill")

    def basis(self) -> Basis | None:
        return self.confirmed("baseline")

    def parameters(self) -> dict[str, Any]:
        return self.basis()["baseline"]

    @property
    def epochs(self) -> int:
        """The epochs of a baseline run that costs what a distilled run costs, in floating-point operations.

        Beside its own training, a distilled run needs the teacher's logits for its views of all its images, and passes
        of the student for those without labels. Training the teacher is not counted.
        """
        own, splits, (student, teacher) = self.config.train.epochs, self.context.splits, self._flop
        epoch = len(splits.student_train) * self._passes * student
        logits = self._views * splits.seen_by_student * teacher
        return own + max(1, round(own * self.config.data.unlabelled + logits / epoch))

    @property
    def _views(self) -> int:
        """How many views a distilled run needs the teacher for: all, or one per epoch if the teacher runs in the loop.
        """
        logits, config = students.logits_of(self.context, self._distilled), self.config
        in_loop = not logits.fits or (config.reads_features and not logits.features_fit)
        return config.train.epochs if in_loop else config.view_count

    @property
    def _passes(self) -> float:
        """What an image of the tuned baseline costs, in forward passes; of the default baseline while none is tuned."""
        tuned, train = (self.basis() or {}).get("baseline", {}), self.config.train
        return students.passes(train.model_copy(update={"freeze": tuned.get("freeze", train.freeze)}))

    @cached_property
    def _flop(self) -> tuple[float, float]:
        """The floating-point operations of a forward pass of the student, and of all the teacher's models."""
        from kdstudy.trainables.models import cost  # imports torch

        context, shape = self.context, self.context.shape
        student, *teacher = (cost.forward_flop(cost.without_weights(settings, **shape), shape["channels"])
                             for settings in (context.model("student"), *self._teacher.models))
        return student, sum(teacher)

    def task(self) -> Task:
        # The schedule spans the longer run.
        task = super().task()
        return replace(task, training=task.training.model_copy(update={"epochs": self.epochs}))


STAGES = (EqualComputeControl,)

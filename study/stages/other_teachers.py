"""The other teachers of a study that searches for the best one: `[teachers.NAME]`, with `search.teacher`.

Each has two stages, its training and its logits, exactly as it would have them as the `[teacher]` of a study of its
own. They are named after it, such as `teacher.small` and `teacher_logits.small`. The search, and all that follows it,
waits for the logits of all teachers; each run learns from the one that its parameters name.
"""

from __future__ import annotations

from kdstudy.analysis.stage_names import stage_for
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import MAIN, section_of
from kdstudy.stages.base import Stage
from kdstudy.stages.teacher import TeacherStage
from kdstudy.stages.teacher_logits import TeacherLogitsStage


class OfOtherTeacher(Stage):
    """A stage of one of them; in the list of stages it stands for those of all."""

    @classmethod
    def kinds(cls, config: StudyConfig) -> tuple[type[Stage], ...]:
        return tuple(cls.of(teacher) for teacher in config.teacher_choice if teacher != MAIN)

    @classmethod
    def of(cls, teacher: str) -> type[Stage]:
        """The stage of a teacher."""
        raise NotImplementedError


class OtherTeacher(OfOtherTeacher, TeacherStage):
    @classmethod
    def of(cls, teacher: str) -> type[Stage]:
        section = section_of(teacher)
        return type(cls.__name__, (cls,), {"name": stage_for(TeacherStage.name, teacher), "section": section,
                                           "trains": section, "__module__": __name__})


class OtherLogits(OfOtherTeacher, TeacherLogitsStage):
    @classmethod
    def of(cls, teacher: str) -> type[Stage]:
        source = stage_for(TeacherStage.name, teacher)
        return type(cls.__name__, (cls,), {
            "name": stage_for(TeacherLogitsStage.name, teacher), "needs": (source,), "source": source,
            "section": section_of(teacher), "__module__": __name__})

    @property
    def taught_as(self) -> str:
        return TeacherLogitsStage.name

"""The stages of a study by name, in the order in which they run.

Where a study chooses among several teachers, those of another than the main one are named after it: `teacher.small`.
"""

from collections.abc import Iterable

CONFIRM_STAGES = ("confirm_baseline", "confirm")
FINALIST_STAGES = ("finalists_baseline", "finalists")
CONTROL_STAGES = ("label_smoothing", "control_label_smoothing", "control_placebo", "control_permuted",
                  "control_equal_compute", "self_teacher", "self_logits", "control_self")
MOST_TEACHERS = 10  # with teacher.replicates
FURTHER_TEACHERS = range(2, MOST_TEACHERS + 1)  # their numbers
FURTHER_STAGES = tuple(stage for number in FURTHER_TEACHERS for stage in (
    f"teacher_{number}", f"teacher_{number}_logits", f"confirm_teacher_{number}"))
AUDIT_STAGES = ("audit_logits", "audit_baseline", "audit")
EARLY_STAGES = ("teacher", "baseline", "teacher_logits", "distill", *FINALIST_STAGES, *CONFIRM_STAGES)
STAGES = (*EARLY_STAGES, *FURTHER_STAGES, *CONTROL_STAGES, *AUDIT_STAGES)
TRIAL_STAGES = tuple(stage for stage in STAGES if not stage.endswith("_logits"))
MAIN_TEACHER = "main"  # among the names of the teachers that a study chooses from


def kind_of(stage: str) -> str:
    """The kind of a stage, whosever it is: `teacher` of `teacher.small`."""
    return stage.partition(".")[0]


def stage_for(stage: str, teacher: str) -> str:
    """The name of a stage of a teacher. stage: that of the main one."""
    return stage if teacher == MAIN_TEACHER else f"{stage}.{teacher}"


def in_order(stages: Iterable[str]) -> list[str]:
    """The stages in the order of STAGES, those of one kind as they come; others are left out."""
    known = [stage for stage in stages if kind_of(stage) in STAGES]
    return sorted(known, key=lambda stage: STAGES.index(kind_of(stage)))

"""The list of stages. To add a stage, add a module next to this one and a line here.

Everything else here follows from the stages themselves: their order, what each of them needs, which trials come first,
their names in settings and messages. The report, which imports nothing from here, has a list of its own in
`analysis/study_files.py`; a loop that no stage has had yet also goes into `LOOPS` in `trainables/any_loop.py`.
"""

from __future__ import annotations

from kdstudy.analysis.stage_names import kind_of
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.stages.audit import AuditBaseline, AuditDistill, AuditLogits
from kdstudy.stages.base import Output, Stage
from kdstudy.stages.confirm import BaselineConfirmation, DistillConfirmation
from kdstudy.stages.controls import CONTROLS
from kdstudy.stages.finalists import BaselineFinalists, DistillFinalists
from kdstudy.stages.other_teachers import OfOtherTeacher, OtherLogits, OtherTeacher
from kdstudy.stages.outputs import Deployment, Export, Report
from kdstudy.stages.search import BaselineSearch, DistillSearch
from kdstudy.stages.teacher import TeacherStage
from kdstudy.stages.teacher_logits import TeacherLogitsStage
from kdstudy.stages.teacher_replicates import STAGES as FURTHER_TEACHERS

LIST: tuple[type[Stage], ...] = (
    TeacherStage, OtherTeacher, BaselineSearch, TeacherLogitsStage, OtherLogits, DistillSearch,
    BaselineFinalists, DistillFinalists, BaselineConfirmation, DistillConfirmation, *FURTHER_TEACHERS, *CONTROLS,
    AuditLogits, AuditBaseline, AuditDistill,
)
STAGES = tuple(kind for kind in LIST if not issubclass(kind, OfOtherTeacher))  # those whose names no setting chooses
OUTPUTS: tuple[Output, ...] = (Deployment(), Report(), Export())

NAMES = tuple(kind.name for kind in (*STAGES, *OUTPUTS))
REPORTED = NAMES[NAMES.index(Report.name):]  # the outputs after which there is a results table to show
# Those to list in a help text: of the further teachers, one stands for all.
LISTED = tuple(name for name in NAMES if name not in {stage.name for stage in FURTHER_TEACHERS if stage.number > 2})
_NEEDS = {stage.name: stage.needs for stage in STAGES}
STAGE_FILES = {stage.name: stage.files for stage in STAGES}


def stages_of(config: StudyConfig) -> tuple[type[Stage], ...]:
    """Return all stages that a study with these settings may have, in order."""
    return tuple(kind for listed in LIST for kind in listed.kinds(config))


def names(config: StudyConfig) -> tuple[str, ...]:
    """Return the stages and outputs of a study with these settings, in order."""
    return tuple(one.name for one in (*stages_of(config), *OUTPUTS) if one.is_wanted(config))


def up_to(config: StudyConfig, until: str) -> set[str]:
    """Return the stages and outputs up to and including one. Raises UserError where there is none of that name."""
    known = (*(stage.name for stage in stages_of(config)), *(output.name for output in OUTPUTS))
    if until not in known:
        raise UserError(f"--until {until}: the study has no such stage; its stages are {', '.join(names(config))}")
    return set(known[: known.index(until) + 1])


def priority(name: str) -> tuple[int, int, str]:
    """Return a sort key by priority: stages at the start of the longest chain of dependent stages come first."""
    def waiting(stage: str) -> int:
        return max((1 + waiting(other) for other, needs in _NEEDS.items() if stage in needs), default=0)

    kind = kind_of(name)
    return -waiting(kind), NAMES.index(kind), name


def may_overlap(one: str, other: str) -> bool:
    """Whether trials of two stages may run at the same time, because neither depends on the other."""
    one, other = kind_of(one), kind_of(other)

    def before(name: str) -> set[str]:
        return {*_NEEDS[name], *(earlier for need in _NEEDS[name] for earlier in before(need))}

    return one not in before(other) and other not in before(one)

"""The teachers that a study may choose among: `[teacher]`, and a section `[teachers.NAME]` for each other one.

Such a section states what sets its teacher apart from `[teacher]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from kdstudy.analysis.settings import of_another_teacher
from kdstudy.config.sections import TeacherSettings
from kdstudy.config.wording import location_of, shown, wording
from kdstudy.errors import UserError
from kdstudy.trainables.settings import MAIN_TEACHER as MAIN  # that of [teacher], among the names of the others
from kdstudy.trainables.settings import Settings

OTHERS = "teachers"  # the section that holds the other sections
TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


def _unless_stated(field: FieldInfo) -> tuple[Any, FieldInfo]:
    """The type and the field of a setting that may be left out."""
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return kind | None, Field(None, description=field.description)


# A section [teachers.NAME]: any setting of [teacher]; None is not stated.
TeacherChanges = create_model("TeacherChanges", __base__=Settings, **{
    name: _unless_stated(field) for name, field in TeacherSettings.model_fields.items()})


def section_of(name: str) -> str:
    """The section of a teacher, `teacher` or `teachers.NAME`."""
    return "teacher" if name == MAIN else f"{OTHERS}.{name}"


def check_named(name: str | None, teachers: Sequence[str], folder: Path) -> None:
    """Raises UserError where --teacher names none of a study's teachers. name: None stands for that of its answer."""
    if name is not None and name not in teachers:
        raise UserError(f"--teacher {name!r} is not a teacher of {folder}; its teachers are "
                        f"{', '.join(map(repr, teachers))}")


def with_changes(main: TeacherSettings, name: str, changes: Settings) -> TeacherSettings:
    """The settings of another teacher: those of `[teacher]` with what `[teachers.NAME]` states.

    Raises ValueError with one line that names the section where they do not fit together."""
    whole = of_another_teacher(main.model_dump(exclude_none=True), changes.model_dump(exclude_none=True))
    try:
        return TeacherSettings.model_validate(whole)
    except ValidationError as error:
        raise ValueError(_explained(section_of(name), error)) from None


def _explained(section: str, error: ValidationError) -> str:
    problem = error.errors()[0]
    location, said = location_of(problem), wording([problem])
    if not location:
        return f"[{section}] {said}".replace("teacher.", f"{section}.")
    return f"{'.'.join([section, *location])} = {shown(problem['input'])}: {said}"


def check_names(others: dict[str, Any]) -> None:
    """Raises ValueError where two teachers could be taken for one another."""
    if MAIN in others:
        raise ValueError(f"[{OTHERS}.{MAIN}] has the name of the teacher of [teacher]; choose another name")
    seen: dict[str, str] = {}
    for name in others:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(f"[{OTHERS}.{other}] and [{OTHERS}.{name}] differ in upper and lower case alone, which "
                             "some file systems do not tell apart; rename one")

"""Series: several studies that differ in one setting, of which the study file has a list.

`train.epochs = [75, 150, 300]` stands for three studies, the members, each exactly what it would be with one value of
the list. They lie in one folder, next to each other, so that they take over each other's finished stages.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import tomli_w

from kdstudy.config.messages import validate
from kdstudy.config.settings import StudyConfig
from kdstudy.config.wording import shown
from kdstudy.errors import UserError

SETTINGS = ("train.epochs", "data.student_images", "teacher.epochs")  # those that may be a list
MOST_MEMBERS = 100
Value = int | float


@dataclass(frozen=True)
class Member:
    """A study of a series. name: of its folder within that of the series."""

    value: Value
    name: str
    config: StudyConfig


@dataclass(frozen=True)
class Series:
    """Studies that differ in one setting. base: the study's name without the setting."""

    base: str
    setting: str
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The name of the series' folder, which a study of the same name does not have."""
        return f"{self.base}-{self.setting}"

    @property
    def about(self) -> str:
        return self.members[0].config.about

    @property
    def values(self) -> list[Value]:
        return [member.value for member in self.members]

    def to_values(self) -> dict[str, Any]:
        """Return the settings as they would appear in a study file."""
        return with_value(self.members[0].config.to_values() | {"name": self.base}, self.setting, self.values)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_values())


def studies_of(config: StudyConfig | Series) -> list[StudyConfig]:
    """The settings of a study, or those of each study of a series, which differ in a number alone."""
    return [member.config for member in config.members] if isinstance(config, Series) else [config]


def member_name(setting: str, value: Value) -> str:
    """The name of a member's folder, such as train.epochs=75."""
    return f"{setting}={value!r}"


def varied_in(values: Any) -> tuple[str, list[Any]] | None:
    """The setting of which settings that are not validated yet have a list, and the list; None if there is none.

    Raises UserError where there are two."""
    found = {}
    for setting in SETTINGS:
        section, _, key = setting.partition(".")
        settings = values.get(section) if isinstance(values, dict) else None
        value = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(value, list | tuple):
            found[setting] = list(value)
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} are both lists, but a series of studies varies one setting; give the "
                        "other a single value")
    return next(iter(found.items()), None)


def with_value(values: dict[str, Any], setting: str, value: Any) -> dict[str, Any]:
    """A copy of settings in which one has another value."""
    section, _, key = setting.partition(".")
    changed = copy.copy(values)
    changed[section] = {**changed[section], key: value}
    return changed


def shrunk_values(setting: str, listed: list[Value], shrunk: list[Value]) -> list[Value]:
    """The values of a series for `--smoke`. listed: those of the study file. shrunk: what each of them alone becomes,
    which may be the same for all: epochs have a minimum, and a number of images becomes one half. They are then made
    different, in the same order, so that the series remains one."""
    if len(set(shrunk)) > 1:
        return shrunk
    if setting == "data.student_images":
        return [shrunk[0] * value / max(listed) for value in listed]
    return [shrunk[0] + sorted(listed).index(value) for value in listed]


def value_in(config: StudyConfig, setting: str) -> Value:
    section, _, key = setting.partition(".")
    return getattr(getattr(config, section), key)


def series_of(values: dict[str, Any]) -> Series | None:
    """The series that the values of a study file describe; None where they describe one study.

    Raises UserError with one line that names the setting, or the member with settings that are not valid."""
    varied = varied_in(values)
    if varied is None:
        return None
    setting, listed = varied
    distinct = distinct_values(setting, listed)
    members = tuple(_member(values, setting, value) for value in distinct)
    if setting == "teacher.epochs" and members[0].config.teacher.is_given:
        raise UserError(f"{setting} = {shown(listed)} varies nothing: the teacher is given, not trained; set "
                        "teacher.model alone, or vary train.epochs or data.student_images")
    if setting == "teacher.epochs" and members[0].config.search.teacher:
        raise UserError(f"{setting} = {shown(listed)} varies [teacher], but search.teacher may choose another teacher; "
                        "remove search.teacher, or give one value")
    base = values["name"]
    return Series(base, setting, members)


def distinct_values(setting: str, listed: list[Any]) -> list[Value]:
    """The values of a list, each once. Raises UserError."""
    for value in listed:
        if not _is_number(value):
            raise UserError(f"{setting} = {shown(listed)}: a series of studies needs numbers, not {shown(value)}")
    distinct = list(dict.fromkeys(listed))
    if len(distinct) < 2:
        single = f", or the single value {shown(distinct[0])}" if distinct else ""
        raise UserError(f"{setting} = {shown(listed)}: a series of studies needs at least two different values, as in "
                        f"[{_example(setting)}]; give them{single}")
    if len(distinct) > MOST_MEMBERS:
        raise UserError(f"{setting} has {len(distinct)} values, but a series has at most {MOST_MEMBERS} studies; give "
                        "fewer")
    return distinct


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number. A whole number may have more digits than fit a float."""
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)


def _example(setting: str) -> str:
    return "0.05, 0.1, 0.2" if setting == "data.student_images" else "10, 20, 40"


def _member(values: dict[str, Any], setting: str, value: Value) -> Member:
    try:
        config = validate(with_value(values, setting, value))
        named = validate(config.to_values() | {"name": f"{config.name}-{setting}-{value!r}"})
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(f"{setting} = ") else
                        f"{setting} = {shown(value)} of the series: {error}") from None
    return Member(value, member_name(setting, value), named)

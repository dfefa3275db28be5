"""Validate settings and explain pydantic's errors in one line: the key, the problem and the remedy."""

import difflib
from typing import Any

from pydantic import ValidationError

from kdstudy.config.sections import DEEPEST, Range
from kdstudy.config.settings import StudyConfig, section_model, settings_table
from kdstudy.config.wording import location_of, shown, wording
from kdstudy.errors import UserError


def validate(values: dict[str, Any]) -> StudyConfig:
    """Settings from the values of a study file. Raises UserError with one line that names the key and the remedy."""
    if _is_deeper(values, DEEPEST):
        raise UserError(f"the settings are nested more than {DEEPEST} deep; `kdstudy settings` lists them all")
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _is_deeper(values: Any, levels: int) -> bool:
    """Whether values are nested deeper than so many levels; found level by level, however deep they are."""
    level = [values]
    for _ in range(levels):
        level = [inner for value in level for inner in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ())]
    return bool(level)


def _explain(error: ValidationError) -> str:
    """Return the first problem as one line: the key, the problem, and the nearest valid name or the valid values."""
    # Prefer the innermost problem. A misspelt name causes two; prefer the unknown key to the missing one.
    problem = max(error.errors(), key=lambda problem: (len(problem["loc"]), problem["type"] == "extra_forbidden"))
    location = location_of(problem)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _keys_beside(location), n=1, cutoff=0.5)
        known = ", ".join(_keys_beside(location))
        section = ".".join(location[:-1])
        elsewhere = [f"{name}.{setting[0]}" for name, settings in settings_table().items()
                     for setting in settings if name and setting[0] == location[-1]]
        meant = elsewhere or ['.'.join([*location[:-1], name]) for name in nearest]
        remedy = f"did you mean {' or '.join(meant)}?" if meant else f"known: {known}"
        return f"{key} is not a setting{f' of [{section}]' if section else ''}; {remedy}"
    if problem["type"] == "missing" and location[-1].isdigit():
        return f"{'.'.join(location[:-1])} needs two values, [low, high]"
    if problem["type"] == "missing":
        return f"{key} is missing; add it to the study file or use --set {key}=…"
    message = wording([other for other in error.errors() if location_of(other) == location])
    if problem["type"] == "model_type":
        example = "{log = [1e-4, 1e-2]}" if location[0] == "search" and len(location) > 1 else "[section]"
        message = f"must be a table such as {example}"
    if not key:
        return message
    value = "" if isinstance(problem["input"], dict) else f" = {shown(problem['input'])}"
    return f"{key}{value}: {message}"


def _keys_beside(location: list[str]) -> list[str]:
    model: Any = StudyConfig
    for part in location[:-1]:
        if part in model.model_fields:  # NAME in teachers.NAME is not
            model = section_model(model.model_fields[part]) or Range
    return list(model.model_fields)

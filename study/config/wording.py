"""Wording of pydantic's validation errors."""

import re
from typing import Any

from kdstudy.trainables.credentials import redact

LONGEST_SHOWN = 80  # characters of a value in a message
# Union branches that pydantic adds to an error's location; they are not part of the setting's name.
OF_A_KEY = "[key]"  # where pydantic says that it is the name of a table that is wrong, not its content
BRANCHES = re.compile(r"(function-|tuple|dict\[|list\[|constrained|nullable|literal\[).*|float|int|str|bool")


def location_of(problem: dict[str, Any]) -> list[str]:
    """Return the section and key of a problem."""
    *parents, last = map(str, problem["loc"] or ("",))
    own = [last] if problem["type"] == "extra_forbidden" or not BRANCHES.fullmatch(last) else []
    found = [part for part in (*(part for part in parents if not BRANCHES.fullmatch(part)), *own) if part]
    return found[:-1] if found[-1:] == [OF_A_KEY] else found


WORDING = {
    "int_type": "must be a whole number", "float_type": "must be a number", "bool_type": "must be true or false",
    "string_type": "must be a string", "string_unicode": "must be valid UTF-8", "dict_type": "must be a table",
    "tuple_type": "must be a list", "list_type": "must be a list", "model_type": "must be a table",
    "missing": "is missing", "extra_forbidden": "is not known", "finite_number": "must be a finite number",
    "literal_error": "must be {expected}", "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}", "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}", "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long",
    "too_short": "must be a list of at least {min_length}", "too_long": "must be a list of at most {max_length}",
}
PATTERNS = {"name": "must consist of letters, digits, '.', '_' and '-', and begin with a letter or digit"}


def wording(problems: list[dict[str, Any]]) -> str:
    """Describe a value's problems; for a union of types, the problem with each type."""
    said = dict.fromkeys(map(_words_for, problems))
    first, *others = said
    return " or ".join([first, *(text.removeprefix("must be ") for text in others)])


def _words_for(problem: dict[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1] == OF_A_KEY:
        return "must consist of letters, digits, '_' and '-', and begin with a letter or digit"
    if problem["type"] == "string_pattern_mismatch":
        return PATTERNS.get(str(problem["loc"][-1]), "must be one line without control characters")
    if problem["type"] in WORDING:
        return WORDING[problem["type"]].format_map(
            {name: _readable(limit) for name, limit in problem.get("ctx", {}).items()})
    message = problem["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _readable(limit: Any) -> str:
    """Format a limit as 1,000,000 or 0.5, whether it is an integer or not."""
    return f"{limit:,}".removesuffix(".0") if isinstance(limit, int | float) else str(limit)


def shown(value: Any) -> str:
    """Format a value for a message, shortening long ones and redacting secrets."""
    try:
        text = redact(repr(list(value) if isinstance(value, tuple) else value))
    except (ValueError, RecursionError):  # more digits than Python prints, or nested too deep
        return "…"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN - 1]}…"

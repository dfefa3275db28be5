"""Load a study file: presets, TOML files, study folders, and command-line overrides; of one study or of a series."""

import contextlib
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdstudy.config.messages import validate
from kdstudy.config.sections import DefaultPoint
from kdstudy.config.series import (
    Series,
    distinct_values,
    member_name,
    series_of,
    shrunk_values,
    value_in,
    varied_in,
    with_value,
)
from kdstudy.config.settings import StudyConfig, credentials_in, named_texts
from kdstudy.config.smoke import smoke_study
from kdstudy.config.teachers import OTHERS
from kdstudy.config.wording import shown, wording
from kdstudy.errors import UserError
from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line

PRESETS = Path(__file__).resolve().parents[1] / "presets"
STUDY_FILE = "study.toml"
STAGES_FILE = "stages.json"
LARGEST_FILE = 2**20  # bytes, of a study file
MOST_SHOWN = 4  # members of a series in a message


def check_parameter(name: str, value: float) -> None:
    """Check a value of a training parameter. Raises UserError that names its option."""
    try:
        DefaultPoint.model_validate({name: value})
    except ValidationError as error:
        raise UserError(f"--{name} = {value:g}: {wording(error.errors())}") from None


def is_own_file(study: str) -> bool:
    """Whether `study` is a preset or the user's own TOML file, not a study folder or URI or the settings in one."""
    if "://" in study:
        return False
    path = find_study(study)
    if Path(study).is_dir():
        return False
    begun = path.name == STUDY_FILE and any(  # of a study, or of the members of a series
        True for pattern in (STAGES_FILE, f"*/{STAGES_FILE}") for _ in path.parent.glob(pattern))
    return not begun


def values_named(study: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings that the user gave directly: in their own TOML file and in overrides."""
    values = _read(find_study(study)) if is_own_file(study) else {}
    for override in overrides:
        _apply_override(values, override)
    return values


def texts_in(values: dict[str, Any]) -> set[str]:
    """Return all strings among settings that are not validated yet."""
    return {text for _, text in named_texts(values)}


def functions_in(values: dict[str, Any]) -> set[str]:
    """Return the functions that unvalidated settings name."""
    others = teachers.values() if isinstance(teachers := values.get(OTHERS), dict) else ()
    sections = [section for section in (values.get("teacher"), values.get("student"), *others)
                if isinstance(section, dict)]
    named = [section.get(key) for section in sections for key in ("model", "function")]
    named += [text for setting, text in named_texts(values) if setting in ("default.loss", "search.loss.choice")]
    return {name for name in named if isinstance(name, str) and is_function(name)}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_study(study: str, overrides: tuple[str, ...] = (), smoke: bool = False) -> StudyConfig:
    """Load a preset, TOML file or study folder, apply `section.key=value` overrides, and validate.

    Raises UserError with one line that names the key and the remedy, also where the settings are those of a series.
    """
    values = _values_of(study, overrides, smoke)
    if varied := varied_in(values):
        raise UserError(_is_a_series(study, *varied))
    return validate(values)


def load_series(study: str, overrides: tuple[str, ...] = (), smoke: bool = False) -> Series | None:
    """Load likewise the series of studies that the settings describe; None where they describe a single study.

    Raises UserError."""
    return series_of(_values_of(study, overrides, smoke))


def is_series(folder: Path) -> bool:
    """Whether a folder holds a series of studies."""
    with contextlib.suppress(UserError):
        return (folder / STUDY_FILE).is_file() and varied_in(_read(folder / STUDY_FILE)) is not None
    return False


def _is_a_series(study: str, setting: str, listed: list[Any]) -> str:
    """Why a command that needs one study has none."""
    said = f"{setting} = {shown(listed)} makes {study} a series of studies, not one study; "
    if not Path(study).is_dir():
        return f"{said}give one value with --set {setting}=…"
    return f"{said}name one of its members: {', '.join(str(path) for path in _members_of(study, setting, listed))}"


def _members_of(study: str, setting: str, listed: list[Any]) -> list[Path]:
    """The folders of a series' members that have begun, else of all."""
    folders = [Path(study) / member_name(setting, value) for value in listed[:MOST_SHOWN]]
    return [folder for folder in folders if (folder / STUDY_FILE).is_file()] or folders


def _values_of(study: str, overrides: tuple[str, ...], smoke: bool) -> dict[str, Any]:
    values = _starting_values(study, smoke)
    for override in overrides:
        _apply_override(values, override)
    return values


def load_values(study: str | Mapping[str, Any], changes: Mapping[str, Any], smoke: bool = False
                ) -> StudyConfig | Series:
    """Load settings from a preset, TOML file, study folder or dict of sections, and apply changes. A series, where one
    of `series.SETTINGS` is a list.

    changes: sections with settings to override, or settings outside sections.

    Raises UserError with one line that names the key and the remedy.
    """
    values = _starting_values(study, smoke)
    for name, change in changes.items():
        known = values.get(name)
        if name == OTHERS and isinstance(known, Mapping) and isinstance(change, Mapping):  # its teachers are sections
            change = {one: _merged(known.get(one), changed) for one, changed in change.items()}
        values[name] = _merged(known, change)
    return series_of(values) or validate(values)


def _merged(section: Any, change: Any) -> Any:
    """A section with some of its settings changed; the change itself where one of the two is no section."""
    return {**section, **change} if isinstance(change, Mapping) and isinstance(section, Mapping) else change


def _starting_values(study: str | Mapping[str, Any], smoke: bool) -> dict[str, Any]:
    """Return the settings before any override, which has the last word, also over `smoke`."""
    if isinstance(study, Mapping):
        values = {"name": "study", **study}
    else:
        path = find_study(study)
        values = {"name": path.stem} | _read(path)
    return _shrunk(values) if smoke else values


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """What `--smoke` makes of a study file. Of a series, each value of its setting becomes smaller."""
    varied = varied_in(values)
    if varied is None:
        return smoke_study(validate(values)).to_values()
    setting, listed = varied[0], distinct_values(*varied)
    each = [smoke_study(validate(with_value(values, setting, value))) for value in listed]
    return with_value(each[0].to_values(), setting,
                      shrunk_values(setting, listed, [value_in(one, setting) for one in each]))


def _read(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file. Raises UserError."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is not a study file: it is larger than {LARGEST_FILE >> 20} MiB")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {one_line(error)}") from None
    for problem in credentials_in(values):
        raise UserError(f"{path}: {problem}")
    return values


def find_study(study: str) -> Path:
    """Return the path of the TOML file of a preset, file or study folder. Raises UserError."""
    path = Path(study)
    if path.is_dir() and (path / STUDY_FILE).is_file():
        return path / STUDY_FILE
    if path.is_file():
        return path
    if study in preset_names():
        return PRESETS / f"{study}.toml"
    if path.is_dir():
        raise UserError(f"{study} is a folder without {STUDY_FILE}; name a study folder, a TOML file or a preset")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UserError(f"{study} does not exist; name a study folder, a TOML file or a preset "
                        f"({', '.join(preset_names())})")
    here = sorted(path.name for path in Path().glob("*.toml"))
    nearest = (difflib.get_close_matches(study, here, n=1, cutoff=0.6)
               or difflib.get_close_matches(study, preset_names(), n=1, cutoff=0.4))
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"presets: {', '.join(preset_names())}"
    raise UserError(f"{study!r} is not a preset, a TOML file or a study folder; {hint}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise UserError(f"--set {override} is not of the form section.key=value, e.g. --set search.trials=40")
    value = _value_of(text)
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {part} is a value, not a section")
    values[parts[-1]] = value


def _value_of(text: str) -> Any:
    """Parse a value as TOML. Other text is returned as a string, without quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()

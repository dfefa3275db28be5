"""Settings as a study file nests them."""

from __future__ import annotations

from typing import Any

# What describes one model only: a section [teachers.NAME] that names another one takes none of it from [teacher].
ORIGINS = ("model", "trained", "logits")
OF_ONE_MODEL = (*ORIGINS, "args", "function", "mean", "std", "normalise")


def of_another_teacher(main: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """The settings of the teacher of a section [teachers.NAME]: those of [teacher] with what the section states.

    main, stated: the settings that are set in the two sections."""
    if any(origin in stated for origin in ORIGINS):
        main = {name: value for name, value in main.items() if name not in OF_ONE_MODEL
                and not (name == "pretrained" and isinstance(value, str))}  # the weights of another model
    return main | stated


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to a dict keyed by full name, such as `train.epochs`."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found

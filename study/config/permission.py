"""Which functions a study folder may run and which hosts it may contact, since it may come from a stranger: only what
the user has named or trusts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdstudy.config.load import functions_in, texts_in
from kdstudy.config.sections import TeacherSettings
from kdstudy.config.settings import StudyConfig, locations_named, own_functions, own_losses
from kdstudy.config.teachers import OTHERS
from kdstudy.errors import UserError
from kdstudy.trainables import functions

LOSS = "loss"
KINDS = {OTHERS: "teacher"}  # what a section holds, where it is not named after that
TRAINED = ("teacher", "student", LOSS)  # what a function may be named for; all of it runs where students are trained


@dataclass(frozen=True)
class Named:
    """What the user has named: functions, package.module:function, and all texts among their settings."""

    functions: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def add(self, values: Mapping[str, Any]) -> None:
        """Settings as a study file holds them, in a file of the user's own, on the command line or in their code."""
        self.functions.update(functions_in(dict(values)))
        self.texts.update(texts_in(dict(values)))


def functions_allowed(config: StudyConfig, named: Named, source: object, *, trust: bool, remedy: str,
                      sections: Iterable[str] = (*TRAINED, "watch")) -> set[str]:
    """Return the functions (package.module:function) that may be called for a study.

    named: settings that the user gave, in their own file or on the command line. source: where the other settings come
    from. sections: those of `TRAINED` that are used, plus `watch` if curves are sent. remedy: how to trust the study,
    for the message.

    Raises UserError if an untrusted study, not the user, names a function or a host to contact, or if a function is
    not the user's own.
    """
    losses = own_losses(config)
    wanted = {setting: name for setting, name in own_functions(config).items()
              if (LOSS if setting in losses else KINDS.get(setting.split(".")[0], setting.split(".")[0])) in sections}
    for setting, name in wanted.items():
        try:
            functions.check_kind(name, setting)
        except ValueError as error:
            raise UserError(str(error)) from None
    if trust:
        return set(wanted.values())
    own, texts = named.functions, named.texts
    for setting, name in wanted.items():
        if name not in own:
            raise UserError(f"{setting} = {name!r} is a function that {source} names, not you, and its code would run; "
                            f"if you trust its author, {remedy}")
    for setting, location in locations_named(config, watch="watch" in sections).items():
        if location not in texts:
            raise UserError(f"{setting} = {location!r} is an address that {source} names, not you, and it would be "
                            f"contacted; if you trust it, {remedy}, else set your own, or none, with "
                            f"--set {setting}=…")
    return own


def check_function(model: str, teacher: TeacherSettings, section: str = "teacher") -> None:
    """Check that a function that a file names as its model is also named by the study's own settings, since it will be
    called. section: that of the teacher. Raises UserError."""
    if ":" in model and model not in (teacher.model, teacher.function):
        raise UserError(f"the teacher's model is the function {model}, which is called only if the study names it: "
                        f"set {section}.function = {model!r}")

"""What a study's folder may make a command do, if the folder may come from a stranger: which functions run, which hosts
are contacted. Only what the user has named, or trusts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdstudy.config.load import functions_in, texts_in
from kdstudy.config.settings import StudyConfig, own_functions, places_named
from kdstudy.errors import UserError
from kdstudy.trainables import functions

MODELS = ("teacher", "student")  # the sections that may name a function


def functions_allowed(config: StudyConfig, named: dict[str, Any], source: object, *, trust: bool, remedy: str,
                      sections: Iterable[str] = (*MODELS, "watch")) -> set[str]:
    """The functions, package.module:function, that may be called for a study.

    named: settings that the user named, in a file of their own or on the command line. source: where the others come
    from. sections: those whose models are built, and `watch` if curves are sent. remedy: how to trust the study, in
    words.

    Raises UserError where the study, not the user, names a function, or a host to contact, and it is not trusted; also
    where a function is none of the user's own.
    """
    wanted = {setting: name for setting, name in own_functions(config).items()
              if setting.split(".")[0] in sections}
    for setting, name in wanted.items():
        try:
            functions.check_kind(name)
        except ValueError as error:
            raise UserError(str(error).replace("model = ", f"{setting} = ", 1)) from None
    if trust:
        return set(wanted.values())
    own, texts = functions_in(named), texts_in(named)
    for setting, name in wanted.items():
        if name not in own:
            raise UserError(f"{setting} = {name!r} is a function that {source} names, not you, and its code would run; "
                            f"if you trust whoever made that study, {remedy}")
    for setting, location in places_named(config, watch="watch" in sections).items():
        if location not in texts:
            raise UserError(f"{setting} = {location!r} is a place that {source} names, not you, and it would be asked "
                            f"or told; if you trust it, {remedy}, else give your own, or none, with --set {setting}=…")
    return own

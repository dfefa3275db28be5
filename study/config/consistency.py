"""Checks of a study's settings that concern several sections: teachers, controls, the audit. All take a `StudyConfig`,
whose module imports this one, and raise ValueError with one line that names the setting and the remedy."""

from __future__ import annotations

from typing import Any

from kdstudy.config.teachers import MAIN, OTHERS, check_names, section_of
from kdstudy.config.wording import shown


def check_teachers(config: Any) -> None:
    """Check the teachers, and that the search chooses among those that there are."""
    others, choice, default = config.teachers or {}, config.search.teacher, config.default.teacher
    check_names(others)
    known = config.all_teachers
    for setting, name in [("default.teacher", default), *(("search.teacher", name) for name in _values(choice))]:
        if name not in known:
            raise ValueError(f"{setting} names {shown(name)}, but the teachers are {', '.join(map(repr, known))}; add "
                             f"[{OTHERS}.{name}], or choose one of these")
    if choice is None and default != MAIN:
        raise ValueError(f"default.teacher = {default!r} needs search.teacher = {{choice = ['{MAIN}', '{default}']}}; "
                         f"to distil from this teacher alone, make it [teacher]")
    for name in others:
        if known[name].replicates != config.teacher.replicates:
            raise ValueError(f"{section_of(name)}.replicates is not a setting; teacher.replicates is, in a study of "
                             "one teacher")
    if _values(choice):  # a range is refused elsewhere
        _check_choice(config, choice)


def _values(choice: Any) -> tuple[Any, ...]:
    return (choice.choice or ()) if choice else ()


def _check_choice(config: Any, choice: Any) -> None:
    if MAIN not in _values(choice):
        raise ValueError(f"search.teacher = {{choice = {shown(list(_values(choice)))}}} must include {MAIN!r}, the "
                         "teacher of [teacher]; make [teacher] one of those that you compare")
    if config.teacher.replicates > 1:
        raise ValueError(f"teacher.replicates = {config.teacher.replicates} repeats one teacher, but search.teacher "
                         "chooses among several; set teacher.replicates = 1, or remove search.teacher and repeat the "
                         "teacher that it chose")
    if config.audit is not None:
        raise ValueError("[audit] repeats a study of one teacher, but search.teacher chooses among several; remove "
                         "search.teacher or [audit]")


def check_audit(config: Any) -> None:
    """Check that the audit can be run."""
    if config.audit is None:
        return
    if config.audit.baseline_batch_size == config.train.batch_size:
        raise ValueError(f"audit.baseline_batch_size = {config.train.batch_size} is train.batch_size too, so that "
                         "the published baseline and the one of equal batch are the same; set another")
    if config.teacher.logits:
        raise ValueError("audit has seeds of its own, for whose views teacher.logits has no logits; set "
                         "teacher.trained in place of teacher.logits, or remove [audit]")


def check_kinds(config: Any) -> None:
    """Check that each control can be run."""
    for kind in config.controls.kinds:
        if problem := _problem_with(config, kind):
            raise ValueError(f"controls.kinds names {kind}, {problem}, or remove {kind}")


def _problem_with(config: Any, kind: str) -> str:
    """Why a control cannot be run, and the remedy beside leaving it out; "" if it can."""
    if kind in ("placebo", "permuted"):
        if config.views.mixes:
            return ("whose logits are not defined for mixtures of two images; set views.mixup = 0 and "
                    "views.cutmix = 0")
        if config.data.unlabelled:
            return "which needs the label of each image; set data.unlabelled = 0"
    if kind == "permuted" and config.reads_features:
        return "which shuffles logits, but a loss reads features; choose losses that read logits"
    if kind == "label_smoothing":
        if config.search.label_smoothing or config.train.label_smoothing:
            return ("but the baseline has label smoothing already; set train.label_smoothing = 0 and remove "
                    "search.label_smoothing")
        if config.search.warm_start:
            return "whose search cannot have the baseline's warm start; remove search.warm_start"
    if kind == "equal_compute":
        for section in [section for section, teacher in config.used_teachers.items() if teacher.logits]:
            return (f"but what the logits of a file cost is not known; set {section}.trained in place of "
                    f"{section}.logits")
    return ""

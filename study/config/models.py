"""Check that timm knows the models and optimizers in the settings, and that the models and the augmentation accept the
images."""

import difflib
from collections.abc import Callable
from typing import Any

from kdstudy.config.settings import StudyConfig, named_losses, own_losses
from kdstudy.config.teachers import section_of
from kdstudy.errors import UserError
from kdstudy.trainables import losses
from kdstudy.trainables.settings import DROP_ARGUMENTS, JITTER, MOST_CLASSES, ModelSettings, TrainSettings

OF_THE_MODEL = ("head_lr", "freeze", "layer_decay", *DROP_ARGUMENTS)  # training settings that a model must support


def check_models(config: StudyConfig, *, classes: int, channels: int, image_size: int) -> None:
    """Check that timm knows the models and optimizers, and that the models accept the images. Imports torch.

    image_size: pixels. Raises UserError.
    """
    from timm.optim import list_optimizers

    from kdstudy.trainables import models

    shape = {"classes": classes, "channels": channels, "image_size": image_size}
    for section, settings in trained_models(config).items():
        try:
            models.check(settings, **shape)
            if wanted := _asked_of_the_model(config, section):
                models.check_recipe(settings, wanted, **shape)
        except ValueError as error:
            raise UserError(f"{section}.{error}") from None
    wanted = {f"{section}.optimizer": teacher.optimizer for section, teacher in config.used_teachers.items()}
    wanted["train.optimizer"] = config.train.optimizer
    for value in (config.search.optimizer.choice or ()) if config.search.optimizer else ():
        wanted["search.optimizer"] = value
        _check_optimizer("search.optimizer", value, list_optimizers())
    for key, name in wanted.items():
        _check_optimizer(key, name, list_optimizers())


def check_losses(config: StudyConfig, classes: int) -> None:
    """Call each loss of the user's own once, on random logits. Imports torch if there is one. Raises UserError."""
    for setting, name in own_losses(config).items():
        try:
            losses.check_own(name, classes)
        except ValueError as error:
            raise UserError(str(error).replace("loss = ", f"{setting} = ", 1)) from None


def check_read(config: StudyConfig, section: str, teachers: dict[str, ModelSettings], *, classes: int, channels: int,
               image_size: int) -> None:
    """Check that teacher and student have what the losses read of them besides logits. Imports torch if any does.

    section: that of the teacher. teachers: its models, each with the setting that names it; none if it is a file of
    logits.

    Raises UserError.
    """
    shape = {"classes": classes, "channels": channels, "image_size": image_size}
    for setting, loss in named_losses(config).items():
        reads = losses.what_reads(loss)
        if reads == losses.LOGITS:
            continue
        from kdstudy.trainables import models

        remedy = f"{setting} = {loss!r} reads them; choose a loss that reads logits alone, such as {losses.USUAL!r}"
        if reads == losses.TOKEN:
            _refuse("student", remedy.replace("reads them", "trains it"), models.check_distillation_head,
                    config.student, shape)
            continue
        if not teachers:
            raise UserError(f"{section}.logits is a file of logits, without the features that {setting} = {loss!r} "
                            f"reads; set {section}.trained to the teacher's models, or choose a loss that reads logits "
                            f"alone, such as {losses.USUAL!r}")
        if config.default.alpha == 1 and setting == "default.loss":
            raise UserError(f"default.alpha = 1 with default.loss = {loss!r} would leave the student's head untrained: "
                            "it learns from the labels alone; make default.alpha smaller")
        for name, settings in ({"student": config.student} | teachers).items():
            _refuse(name, remedy, models.feature_width, settings, shape)


def notes_on_losses(config: StudyConfig) -> list[str]:
    """Return what to know of a search whose range reaches where the student's head learns nothing.

    No trial need have been there for the report's surface, which knows the other trials alone, to find it best.
    """
    if not config.reads_features or config.search.alpha is None or 1 not in config.search.alpha.extremes:
        return []
    return ["search.alpha reaches 1, where a loss of features leaves the student's head untrained: trials near it are "
            "lost, and what the report says of alpha near 1 is not to be trusted; end it below, such as "
            "search.alpha = {linear = [0, 0.95]}"]


def notes_on_teachers(config: StudyConfig) -> list[str]:
    """Name the teachers that no trial can have."""
    unused = [name for name in config.all_teachers if name not in config.teacher_choice]
    every = ", ".join(f"'{name}'" for name in config.all_teachers)
    return [f"[{section_of(name)}] is not used; to compare it, set search.teacher = {{choice = [{every}]}}"
            for name in unused]


def _refuse(section: str, remedy: str, check: Callable[..., Any], settings: ModelSettings, shape: dict[str, int]
            ) -> None:
    """Raises UserError with the remedy if a model does not pass a check."""
    try:
        check(settings, **shape)
    except ValueError as error:
        raise UserError(f"{section}.{error}. {remedy}") from None


def check_controls(config: StudyConfig, classes: int) -> None:
    """Raises UserError where a control of the settings says nothing with so few classes."""
    if "permuted" in config.controls.kinds and classes == 2 and not config.smoke:
        raise UserError("controls.kinds names permuted, but the data have two classes: the one wrong class cannot be "
                        "shuffled; remove permuted")


def check_logits(config: StudyConfig, classes: int) -> None:
    """Raises UserError where views.top_k cannot number so many classes."""
    if config.views.kept_logits(classes) and classes > MOST_CLASSES:
        raise UserError(f"views.top_k = {config.views.top_k} works with at most {MOST_CLASSES} classes, not {classes}; "
                        "remove it")


def check_views(config: StudyConfig, channels: int) -> None:
    """Check that the augmentation can change images of so many channels. Raises UserError."""
    views = config.views
    named = {"auto_augment": views.auto_augment != "none", **{name: getattr(views, name) > 0 for name in JITTER}}
    for name in [name for name, wanted in named.items() if wanted and channels not in (1, 3)]:
        raise UserError(f"views.{name} = {getattr(views, name)!r} changes grey and RGB images only, and these have "
                        f"{channels} channels; set it to {'none' if name == 'auto_augment' else 0}")


def trained_models(config: StudyConfig) -> dict[str, ModelSettings]:
    """Return the models that the study trains itself, by section."""
    teachers = {section: teacher.model_settings for section, teacher in config.used_teachers.items()
                if not teacher.is_given}
    return teachers | {"student": config.student}


def _asked_of_the_model(config: StudyConfig, section: str) -> dict[str, str]:
    """The training settings, as far as they are set or searched, that not every model can follow, by full name."""
    own, name = (config.train, "train") if section == "student" else (config.teacher_in(section), section)
    defaults = TrainSettings()
    wanted = {setting: f"{name}.{setting}" for setting in OF_THE_MODEL
              if getattr(own, setting) != getattr(defaults, setting)}
    searched = config.space("baseline") if section == "student" else {}
    return {setting: f"search.{setting}" for setting in OF_THE_MODEL if setting in searched} | wanted


def _check_optimizer(key: str, name: Any, known: list[str]) -> None:
    if str(name).lower() not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see timm.optim.list_optimizers()"
        raise UserError(f"{key} = {name!r} is not a timm optimizer; {hint}")
    from kdstudy.trainables.optimizer import check_optimizer

    try:
        check_optimizer(str(name))
    except ValueError as error:
        raise UserError(f"{key} = {name!r} cannot be used: {error}") from None

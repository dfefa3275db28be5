"""`--smoke`: shrink a study so that all its stages run within minutes on a CPU."""

from typing import Any

from kdstudy.config.messages import validate
from kdstudy.config.sections import Range, TeacherSettings
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import OTHERS, section_of
from kdstudy.trainables.settings import Settings, TrainSettings

SMOKE_PIXELS = 1.2e6  # per split; keeps a first try at 224 pixels within minutes on a CPU
SMOKE_IMAGES = 12  # at least, enough for a few images of a few classes


def smoke_study(config: StudyConfig) -> StudyConfig:
    """Return the same study with all stages, shrunk for a first try: random weights, few images, few trials."""
    sizes = (teacher.image_size or 0 for teacher in config.used_teachers.values())
    size = max(config.data.image_size or 0, *sizes, config.student.image_size or 0, 32)
    limit, large = max(SMOKE_IMAGES, round(SMOKE_PIXELS / size**2)), size > 64
    trials = 3 if large else 6
    teacher_epochs = max(2, config.teacher.epochs // (8 if large else 4))
    epochs = max(2, config.train.epochs // 10)
    changes = {
        "name": f"{config.name}-smoke",
        "smoke": True,
        "data": {"limit": min(limit, config.data.limit or limit), "classes": _classes(config, limit // 6),
                 "train_images": _portion(config.data.train_images),
                 "student_images": _portion(config.data.student_images)},
        "teacher": {"epochs": teacher_epochs, **_at_the_start(config.teacher, teacher_epochs),
                    "lr": config.teacher.learning_rates[:1], "pretrained": False,
                    "replicates": min(2, config.teacher.replicates)},
        "teachers": {name: _shrunk_teacher(config.used_teachers[section_of(name)], changes, large)
                     for name, changes in (config.teachers or {}).items() if name in config.teacher_choice} or None,
        "student": {"pretrained": False},
        "train": {"epochs": epochs, **_at_the_start(config.train, epochs)},
        "search": {"trials": trials, "baseline_trials": trials, "protected": trials // 2,
                   "baseline_protected": trials // 2,
                   "grace_period": None, "report_every": None, "checkpoint_every": None,
                   "warmup_epochs": _fewer(config.search.warmup_epochs, epochs),
                   "freeze": _fewer(config.search.freeze, epochs)},
        # By default none: they choose, and from a trial run there is nothing to choose.
        "finalists": {"configurations": min(2, config.finalists.configurations or 0), "seeds": 1},
        "confirm": {"seeds": 2},
        "views": {"count": None},
    }
    if large:  # a batch that fits a GPU may not fit a laptop
        changes["teacher"]["batch_size"] = min(8, config.teacher.batch_size)
        changes["train"]["batch_size"] = min(8, config.train.batch_size)
        changes["search"]["batch_size"] = None
    if config.audit:
        changes["audit"] = {"seeds": 2}
        if large:
            changes["audit"]["baseline_batch_size"] = 2 * changes["train"]["batch_size"]
    return validate(_merge(config.model_dump(), changes))


def _shrunk_teacher(teacher: TeacherSettings, changes: Settings, large: bool) -> dict[str, Any]:
    """What the section [teachers.NAME] then states: what it takes from [teacher] is shrunk there, but for epochs, by
    which teachers may differ alone. teacher: with all its settings."""
    epochs = max(2, teacher.epochs // (8 if large else 4))
    own = {"epochs": epochs, **_at_the_start(teacher, epochs), "lr": teacher.learning_rates[:1], "pretrained": False}
    if large:
        own["batch_size"] = min(8, teacher.batch_size)
    return changes.model_dump(exclude_none=True) | {name: value for name, value in own.items() if value is not None}


def _at_the_start(settings: TrainSettings, epochs: int) -> dict[str, Any]:
    """What is counted in epochs from the beginning, made to end before the last of so many."""
    return {name: _before_the_last(getattr(settings, name), epochs) for name in ("warmup_epochs", "freeze")}


def _before_the_last(value: Any, epochs: int) -> Any:
    return min(value, epochs - 1) if isinstance(value, int | float) else value


def _fewer(dimension: Range | None, epochs: int) -> dict[str, Any] | None:
    """The same range as far as it ends before the last of so many epochs; None if that leaves nothing to search."""
    if dimension is None:
        return None
    kind, values = next((kind, values) for kind, values in dimension.model_dump(exclude_none=True).items())
    left = list(dict.fromkeys(_before_the_last(value, epochs) for value in values))
    return {kind: left} if len(left) > 1 else None


def _classes(config: StudyConfig, most: int) -> int | tuple[str, ...] | None:
    """Keep only a few classes, so that a few images cover them all."""
    classes = config.data.classes
    if isinstance(classes, tuple):
        return classes[:most]
    return min(classes or most, most) if most < 20 or classes else None


def _portion(amount: float | int | None) -> float | None:
    """Keep a fraction of the data, which also suits the shrunk data; replace a number of images by one half."""
    return 0.5 if isinstance(amount, int) else amount


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        merged[key] = _merge(merged[key], change) if isinstance(change, dict) and key != OTHERS else change
    return merged

"""`--smoke`: shrink a study so that all its stages run within minutes on a CPU."""

from typing import Any

from kdstudy.config.messages import validate
from kdstudy.config.settings import StudyConfig

SMOKE_PIXELS = 1.2e6  # per split; keeps a first try at 224 pixels within minutes on a CPU
SMOKE_IMAGES = 12  # at least, enough for a few images of a few classes


def smoke_study(config: StudyConfig) -> StudyConfig:
    """Return the same study with all stages, shrunk for a first try: random weights, few images, few trials."""
    size = max(config.data.image_size or 0, config.teacher.image_size or 0, config.student.image_size or 0, 32)
    limit, large = max(SMOKE_IMAGES, round(SMOKE_PIXELS / size**2)), size > 64
    trials = 3 if large else 6
    changes = {
        "name": f"{config.name}-smoke",
        "smoke": True,
        "data": {"limit": min(limit, config.data.limit or limit), "classes": _classes(config, limit // 6),
                 "train_images": _portion(config.data.train_images),
                 "student_images": _portion(config.data.student_images)},
        "teacher": {"epochs": max(2, config.teacher.epochs // (8 if large else 4)),
                    "lr": config.teacher.learning_rates[:1], "pretrained": False},
        "student": {"pretrained": False},
        "train": {"epochs": max(2, config.train.epochs // 10)},
        "search": {"trials": trials, "baseline_trials": trials, "protected": trials // 2,
                   "baseline_protected": trials // 2,
                   "grace_period": None, "report_every": None, "checkpoint_every": None},
        # By default none: they choose, and from a trial run there is nothing to choose.
        "finalists": {"configurations": min(2, config.finalists.configurations or 0), "seeds": 1},
        "confirm": {"seeds": 2},
        "views": {"count": None},
    }
    if large:  # a batch that fits a GPU may not fit a laptop
        changes["teacher"]["batch_size"] = min(8, config.teacher.batch_size)
        changes["train"]["batch_size"] = min(8, config.train.batch_size)
        changes["search"]["batch_size"] = None
    return validate(_merge(config.model_dump(), changes))


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
        merged[key] = _merge(merged[key], change) if isinstance(change, dict) else change
    return merged

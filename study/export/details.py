"""What export.json says of an export beside its proof: where it comes from, and what must be done to an image."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from kdstudy.analysis.stage_names import stage_for
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.settings import StudyConfig
from kdstudy.export.candidates import Candidate
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.store.fingerprints import hash_images

CARD = "README.md"
DETAILS = "export.json"
SETTINGS = "settings.toml"  # not study.toml, with which a folder is a study
PROBES = "probes.safetensors"
OF_MACHINES = ("resources", "watch")  # sections of the settings that say where a study ran


def origin(config: StudyConfig, candidate: Candidate, deployable: Deployable,
           formats: Iterable[Format], folder: Path) -> dict[str, Any]:
    """Where an export comes from, as JSON values.

    folder: of the study. Of the result, data: a digest of the images and labels of each split, as in the fingerprints
    of stages; weights: of the files in the study; teacher: the one that it learned from, or is, by its stage and a
    digest of its weights.
    """
    splits, study = deployable.splits, StudyFiles(folder)
    stage = stage_for("teacher", candidate.teacher)
    done = study.done(stage)
    return {
        "versions": _versions(formats),
        "weights": [{"sha256": sha256(file)} for file in candidate.weights],
        "teacher": {"model": done["model"], "stage": study.stage(stage).name, "weights": done["weights"]}
        if done else None,
        "data": {name: hash_images(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")},
        "classes": list(splits.class_names),
        "preprocessing": _preprocessing(config, deployable),
    }


def _preprocessing(config: StudyConfig, deployable: Deployable) -> dict[str, Any]:
    model, splits = deployable.model, deployable.splits
    return {
        "decoding": "Pillow; EXIF orientation not applied; the shorter side resized to stored_size (bicubic), the "
                    "middle cut out; grey or RGB by channels; 8 bits",
        "stored_size": splits.image_size, "channels": splits.channels, "stretch": config.data.stretch,
        "values": [0, 1], "size": model.size, "interpolation": "bicubic", "antialias": True, "crop": None,
        "mean": list(model.mean), "std": list(model.std), "resized_by_graphs": deployable.resizes,
    }


def _versions(formats: Iterable[Format]) -> dict[str, str]:
    needed = ["kdstudy", "torch", "timm", *(name for one in formats for name in one.requires)]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name)
                                                    for name in dict.fromkeys(needed)}


def settings_text(config: StudyConfig) -> str:
    """The study's settings as a study file, without those that say where it ran."""
    return tomli_w.dumps({name: value for name, value in config.to_values().items() if name not in OF_MACHINES})


def identity(path: Path) -> dict[str, Any]:
    """The size of a file in bytes, and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The header of a model card: metadata that the Hugging Face hub reads, in YAML, by huggingface_hub's own classes."""

import re
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from kdstudy.config.settings import StudyConfig
from kdstudy.export.formats.base import Deployable
from kdstudy.trainables import models
from kdstudy.trainables.sources import NAMES
from kdstudy.trainables.sources.hub import DATA_SETS, SCHEME

TASK = "image-classification"
DISTILLED = ("confirm", "distill")  # the stages whose runs learn from a teacher
NOT_ON_THE_HUB = ("digits",)


def header(config: StudyConfig, deployable: Deployable, details: dict[str, Any], name: str) -> str:
    """The card's first lines, from --- to ---. details: of export.json. name: the model's.

    No licence is named: that is for whoever publishes the model to choose."""
    data = ModelCardData(
        model_name=name, library_name=_library(deployable, details), pipeline_tag=TASK, metrics=["accuracy"],
        tags=_tags(deployable, details), datasets=[found] if (found := hub_data_set(config.data.source)) else None,
        eval_results=_results(config, deployable, details), **_base_model(deployable))
    return f"---\n{data.to_yaml()}\n---\n"


def hub_data_set(source: str) -> str | None:
    """The hub's name of the data set at a source, or under which it is known there; None for one's own images."""
    if source.startswith(SCHEME + DATA_SETS):
        owner, name, *_ = source.removeprefix(SCHEME + DATA_SETS).split("/")
        return f"{owner}/{name.partition('@')[0]}"
    return source if source in NAMES and source not in NOT_ON_THE_HUB else None


def base_model(deployable: Deployable) -> str | None:
    """The hub's name of timm's weights from which the model's training began; None for any other start."""
    settings = deployable.settings
    if settings.pretrained is not True or models.is_function(settings.model):
        return None
    return timm.get_pretrained_cfg(settings.model).hf_hub_id


def is_distilled(details: dict[str, Any]) -> bool:
    """Whether an exported model learned from a teacher."""
    key = details["key"]
    return (key.get("confirm") or key.get("search") or "").rpartition("-")[0] in DISTILLED


def _library(deployable: Deployable, details: dict[str, Any]) -> str | None:
    return "timm" if "timm" in details["formats"] and not models.is_function(deployable.settings.model) else None


def _tags(deployable: Deployable, details: dict[str, Any]) -> list[str]:
    of_timm = ["timm", "transformers"] if _library(deployable, details) else []
    return [TASK, *of_timm, *(["knowledge-distillation"] if is_distilled(details) else [])]


def _base_model(deployable: Deployable) -> dict[str, str]:
    name = base_model(deployable)
    return {"base_model": name, "base_model_relation": "finetune"} if name else {}


def _results(config: StudyConfig, deployable: Deployable, details: dict[str, Any]) -> list[EvalResult]:
    """What these very weights reach on the test images, as shares; how many those are is said with the data set's
    name, since a study may use a part of it."""
    splits, source = deployable.splits, config.data.source
    last = re.split(r"[/\\]", source.rstrip("/"))[-1]
    found = next(iter(details["formats"].values()))
    measured = {("accuracy", "accuracy of these weights"): found["accuracy"]}
    if scaling := details.get("calibration"):
        measured["expected_calibration_error", "calibration error of these weights, 15 bins"] = \
            scaling["test"]["after"]["calibration_error"]
    return [EvalResult(
        task_type=TASK, task_name="Image Classification", dataset_type=hub_data_set(source) or _slug(last),
        dataset_name=f"{last}: {len(splits.test)} test images of {len(splits.class_names)} classes",
        dataset_split="test", metric_type=kind, metric_name=what, metric_value=round(value, 6))
        for (kind, what), value in measured.items()]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "images"

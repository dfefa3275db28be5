"""What a deployer wants to see of a finished study, for results/deployment.json: costs measured here, and qualities
from the results. `kdstudy.analysis.deployment` says what the file holds, and reads it."""

import datetime
import platform
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kdstudy.analysis import deployment
from kdstudy.analysis.predictions import calibration
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.permission import check_function
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import section_of
from kdstudy.export import latency
from kdstudy.trainables import models
from kdstudy.trainables.device import default_device, release_memory
from kdstudy.trainables.models import Classifier, cost
from kdstudy.trainables.settings import ModelSettings
from kdstudy.trainables.views import resize


def figures(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """The content of deployment.json. Takes about a minute at most, and for small models a few seconds.

    The models have random weights, on which neither sizes nor times depend. The confirmation must be done. Raises
    UserError if the teacher is a function that the study does not name, ValueError where its files cannot be read."""
    study = StudyFiles(folder)
    data, device = study.description["data"], default_device()
    shape = {"classes": len(data["classes"]), "channels": data["channels"], "image_size": data["image_size"]}
    settings = {"teacher": _teacher_settings(config, study), "student": [config.student]}
    titles = {"teacher": config.all_teachers[study.teacher].title, "student": config.student.model}
    built = {name: [models.build(one, **shape) for one in members] for name, members in settings.items()}
    costs = {name: {"model": titles[name], **_sizes(members, settings[name], shape)} for name, members in built.items()}
    times = latency.measure({name: (_one_after_the_other(members, device), (data["channels"], *2 * (members[0].size,)))
                             for name, members in built.items() if members}, device)
    for name, found in costs.items():
        found["latency"] = {str(batch): one.as_dict() for batch in latency.BATCHES if (one := times.of(name, batch))}
        if reasons := [reason for (model, _), reason in times.reasons.items() if model == name]:
            found["reason"] = "; ".join(reasons)
    built.clear()
    release_memory()
    ratios = {str(batch): times.ratio("teacher", "student", batch) for batch in latency.BATCHES}
    return {
        "key": deployment.key(study),
        "measured": {"device": device.type, "hardware": hardware(device), "threads": torch.get_num_threads(),
                     "precision": "fp32", "torch": torch.__version__, "date": datetime.date.today().isoformat()},
        "costs": costs,
        "speed_up": {batch: ratio and ratio.as_dict() for batch, ratio in ratios.items()},
        "quality": deployment.quality(study, calibration(study)),
    }


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor: never of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.machine()


def _teacher_settings(config: StudyConfig, study: StudyFiles) -> list[ModelSettings]:
    """Of each model of the teacher; none where it is a file of logits."""
    members = (study.teacher_done() or {}).get("members") or []
    for member in members:
        check_function(member["model"]["model"], config.all_teachers[study.teacher], section_of(study.teacher))
    return [ModelSettings.model_validate(member["model"] | {"pretrained": False}) for member in members]


def _sizes(members: list[Classifier], settings: list[ModelSettings], shape: dict[str, int]) -> dict[str, Any]:
    """What can be counted of one model, or of several that run together."""
    if not members:
        return {"models": 0, "image_size": None, "parameters": None, "multiply_adds": None, "bytes": None,
                "reason": "only its logits are known"}
    flop = [cost.forward_flop(cost.without_weights(one, **shape), shape["channels"]) for one in settings]
    return {
        "models": len(members), "image_size": members[0].size,
        "parameters": sum(member.parameter_count for member in members),
        "multiply_adds": round(sum(flop) / 2),
        "bytes": sum(len(save({name: tensor.contiguous() for name, tensor in member.net.state_dict().items()}))
                     for member in members),
    }


def _one_after_the_other(members: list[Classifier], device: torch.device) -> latency.Predict:
    """All members on the same images, if need be resized as the study does."""
    for member in members:
        member.eval().to(device)

    def predict(images: torch.Tensor) -> None:
        for member in members:
            member(resize(images, member.size))

    return predict

"""The device on which a run computes, and what is moved there, in which memory format and precision."""

import gc
import warnings

import numpy as np
import torch

from kdstudy.trainables import models
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.settings import TrainSettings


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(images: ImageSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) int64 as tensors; not copied if they lie on the device already."""
    return read_only_tensor(images.images).to(device), read_only_tensor(images.labels).to(device)


def read_only_tensor(array: np.ndarray) -> torch.Tensor:
    """Wrap an array without copying it. Arrays from Ray's object store are read-only, so never write to the tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def move_model(model: Classifier, settings: TrainSettings, device: torch.device) -> Classifier:
    """Move a model to the device, in the memory format that the settings ask for or that suits it."""
    last = settings.channels_last == "yes" or (settings.channels_last == "auto" and models.wants_channels_last(model))
    return model.to(device, memory_format=torch.channels_last if last else torch.preserve_format)


def autocast_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype | None:
    """bf16 if the settings ask for it, or automatically on GPUs that support it; None for fp32. On CPUs bf16 is slower
    than fp32."""
    if settings.precision == "bf16":
        return torch.bfloat16
    automatic = settings.precision == "auto" and device.type == "cuda"
    return torch.bfloat16 if automatic and torch.cuda.is_bf16_supported(including_emulation=False) else None


def release_memory() -> None:
    """Free what a finished run held, so that the next one on this device finds the memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

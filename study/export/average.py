"""One model made of the runs of a configuration that differ in their seed alone."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdstudy.errors import UserError
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.loop import batches
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.views import resize

BATCH = 256  # images, to measure batch norm's statistics


class MeanOfLogits(nn.Module):
    """Several models of one kind as one, which returns the mean of their logits.

    It has what a `Classifier` has for its readers: size in pixels, mean and std per channel, with which each of its
    models normalises images in 0..1 itself."""

    def __init__(self, models: Sequence[Classifier]):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.size, self.mean, self.std = models[0].size, models[0].mean, models[0].std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) for images (B, C, size, size) in 0..1."""
        return torch.stack([model(images) for model in self.models]).mean(0)

    @property
    def parameter_count(self) -> int:
        return sum(model.parameter_count for model in self.models)


def average_weights(files: Sequence[Path], target: Path) -> set[str]:
    """Write the mean of several models' weights, tensor by tensor (Wortsman et al. 2022, model soups). Counters are the
    first file's. Returns the names of the tensors that differ between the files. Raises UserError where the files do
    not hold the same tensors."""
    states = [load_file(file) for file in files]
    first = states[0]
    if any({name: tensor.shape for name, tensor in state.items()}
           != {name: tensor.shape for name, tensor in first.items()} for state in states):
        raise UserError("the runs' weights are not of one model, so they have no average")
    save_file({name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype).contiguous()
               if tensor.is_floating_point() else tensor for name, tensor in first.items()}, target)
    return {name for name, tensor in first.items() if any(not torch.equal(state[name], tensor) for state in states)}


@torch.no_grad()
def measure_batch_norm(model: Classifier, images: ImageSet, averaged: Collection[str]) -> None:
    """Replace the running statistics of batch norm, which an average of weights does not have, by those of all training
    images, each seen once as it is.

    averaged: names of tensors whose values are an average. Statistics that no run changed, as in a frozen body, stay.
    """
    norms = [module for name, module in model.net.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
             and {f"{name}.running_mean", f"{name}.running_var"} & set(averaged)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    pixels = torch.from_numpy(images.images)
    for rows in batches(torch.arange(len(images)), BATCH):
        model(resize(pixels[rows].float() / 255, model.size))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()

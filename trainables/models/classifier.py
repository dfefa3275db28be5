"""A model behind its own normalisation, and its weights on disk."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdstudy.trainables.messages import one_line


class Classifier(nn.Module):
    """A model that takes images in 0..1 and normalises them itself.

    net: the bare model, the only part that has weights. mean, std: a number per channel. size: pixels, of the images
    that the model expects.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: int):
        super().__init__()
        self.net, self.size = net, size
        self.mean, self.std = mean, std
        self.register_buffer("shift", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("divisor", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) for images (B, C, size, size) in 0..1."""
        return self.net((images - self.shift) / self.divisor)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())


def save_weights(model: Classifier, path: Path) -> None:
    """Write the bare model's weights as safetensors, under timm's own names."""
    save_file({name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}, path)


def load_weights(model: Classifier, path: Path) -> None:
    """Read weights that `save_weights` wrote into a model that was built with the same settings. Raises ValueError."""
    try:
        model.net.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise many types
        raise ValueError(f"{path} does not hold this model's weights: {one_line(error)}") from None


def wants_channels_last(model: nn.Module) -> bool:
    """Whether the memory format "channels last" is worthwhile. Convolutional networks train faster with it; in a
    transformer only the stem could gain."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1

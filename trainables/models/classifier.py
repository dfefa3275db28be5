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

    def with_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, classes), and the pooled features (B, D) that enter the head, for images as for `forward`. The net
        needs timm's methods forward_features and forward_head."""
        return logits_and_features(self.net, (images - self.shift) / self.divisor)

    def feature_width(self) -> int:
        """D, the number of pooled features of an image. Computes one image, without changing anything."""
        training = self.training
        self.eval()
        with torch.no_grad():
            image = torch.zeros(1, len(self.mean), self.size, self.size, device=self.shift.device)
            width = self.with_features(image)[1].shape[1]
        self.train(training)
        return width

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())


def logits_and_features(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A bare model's logits (B, classes) and pooled features (B, D) for normalised images, as timm's
    FeatureDistillationTask reads them: with the head's dropout, if there is any."""
    known = net.forward_features(images)
    return net.forward_head(known), net.forward_head(known, pre_logits=True)


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

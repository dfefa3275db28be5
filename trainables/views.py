"""Deterministic augmentation: view v of image i is a pure function of (view seed, v, i).

All randomness of a view is drawn here, for all images at once, from a counter-based generator keyed by (view seed,
view). Nothing depends on batches or on their order, so teacher and student see the same view, each at its own image
size, and the teacher's logits can be computed beforehand.

In this order: the stored image is shifted, mirrored and zoomed, or a crop of it mirrored; it is resized to the model's
image size; in 0..1 and float32, never rounded to 256 levels, automatic augmentation, colour jitter and erasing change
it; last, its partner is mixed in. The model normalises.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from kdstudy.trainables.augment import auto, boxes, crop, cutmix, erase, jitter
from kdstudy.trainables.augment.crop import resize
from kdstudy.trainables.augment.draws import uniform
from kdstudy.trainables.settings import ViewSettings

# A whole epoch's view is rendered at once if it fits into this; otherwise each batch is rendered by itself.
RENDER_AHEAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each of N images in one view. All tensors are (N, ...); None stands for what the settings leave
    out. Boxes are as in `augment.boxes`."""

    shift_x: torch.Tensor  # (N,) int64, pixels of the stored image
    shift_y: torch.Tensor  # likewise
    flip: torch.Tensor  # (N,) bool
    zoom: torch.Tensor  # (N,) float32, 1 leaves the size unchanged
    partner: torch.Tensor  # (N,) int64, index of the image that is mixed in
    partner_weight: torch.Tensor  # (N,) float32, 0 to settings.mixup; 0 where CutMix takes the place of mixup
    crop: torch.Tensor | None = None  # (N, 4) float32, the box that is cut out
    ops: torch.Tensor | None = None  # (N, K) int64, see augment.auto
    magnitudes: torch.Tensor | None = None  # (N, K) float32
    jitter_order: torch.Tensor | None = None  # (N, 4) int64, see augment.jitter
    jitter_amounts: torch.Tensor | None = None  # (N, 4) float32
    erased: torch.Tensor | None = None  # (N, 4) float32, the box that is erased
    pasted: torch.Tensor | None = None  # (N, 4) float32, the box that is the partner's

    def to(self, device: torch.device) -> "ViewParameters":
        return ViewParameters(**{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def at(self, indices: torch.Tensor) -> "ViewParameters":
        """Those of the images at `indices` (B,)."""
        return ViewParameters(**{name: value[indices] for name, value in vars(self).items() if value is not None})


def draw_view(settings: ViewSettings, view_seed: int, view: int, images: int) -> ViewParameters:
    """Draw one view's parameters for a number of images. Entry i depends on (view_seed, view, i) alone, except for the
    mixup partner, which also depends on that number."""
    drawn = np.random.Generator(np.random.Philox(key=[view_seed, view])).random((images, 6))
    steps = 2 * settings.shift + 1
    parameters = {
        "shift_x": (drawn[:, 0] * steps).astype(np.int64) - settings.shift,
        "shift_y": (drawn[:, 1] * steps).astype(np.int64) - settings.shift,
        "flip": (drawn[:, 2] < 0.5) & settings.flip,
        "zoom": 1 + settings.scale * (2 * drawn[:, 3] - 1),
        "partner": (drawn[:, 4] * images).astype(np.int64),
        "partner_weight": settings.mixup * drawn[:, 5],
    }
    parameters |= _draw_own(settings, view_seed, view, images)
    if settings.cutmix:
        numbers = uniform("cutmix", view_seed, view, images, cutmix.COLUMNS)
        takes, parameters["pasted"] = cutmix.draw(numbers, settings.cutmix,
                                                  cutmix.PROBABILITY if settings.mixup else 1.0)
        parameters["partner_weight"] = np.where(takes, 0.0, parameters["partner_weight"])
    return ViewParameters(**{name: torch.from_numpy(value.astype(np.float32) if value.dtype == np.float64 else value)
                             for name, value in parameters.items()})


def _draw_own(settings: ViewSettings, view_seed: int, view: int, images: int) -> dict[str, np.ndarray]:
    """What each image draws for itself; see the functions named `draw` in `augment`."""
    def numbers(kind: str, columns: int) -> np.ndarray:
        return uniform(kind, view_seed, view, images, columns)

    drawn = {}
    if settings.crops:
        drawn["crop"] = crop.draw(numbers("crop", boxes.COLUMNS), settings.crop_scale, settings.crop_ratio)
    if settings.auto_augment != "none":
        trivial = settings.auto_augment == "trivialaugment"
        count, magnitude = (1, None) if trivial else (settings.randaug_ops, settings.randaug_magnitude)
        drawn["ops"], drawn["magnitudes"] = auto.draw(numbers("auto_augment", count * auto.COLUMNS),
                                                      settings.auto_augment, magnitude)
    if any(settings.jitter):
        drawn["jitter_order"], drawn["jitter_amounts"] = jitter.draw(numbers("jitter", jitter.COLUMNS), settings.jitter)
    if settings.erase:
        drawn["erased"] = erase.draw(numbers("erase", erase.COLUMNS), settings.erase)
    return drawn


@dataclass(frozen=True)
class Batch:
    """One view of some images, ready for a model. The last two are None without mixup and CutMix."""

    images: torch.Tensor  # (B, C, size, size) float32, 0..1
    labels: torch.Tensor  # (B,) int64
    partner_labels: torch.Tensor | None  # (B,) int64
    partner_weight: torch.Tensor | None  # (B,) float32, the partner's share of the image


class Views:
    """All views of a set of images, rendered at one model's image size, on the device where the images lie.

    images: (N, C, H, W) uint8; labels: (N,) int64; both on one device. count: how many different views there are; view
    `count` is view 0 again. size: pixels.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, settings: ViewSettings, *,
                 view_seed: int, count: int, size: int):
        self.images, self.labels, self.settings = images, labels, settings
        self.view_seed, self.count, self.size = view_seed, count, size
        self._view: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, view: int, indices: torch.Tensor) -> Batch:
        """One view of the images at `indices` (B,)."""
        self._select(view % self.count)
        images = self._render(indices)
        if not self.settings.mixes:
            return Batch(images, self.labels[indices], None, None)
        own = self._parameters.at(indices)
        weight = own.partner_weight
        share = weight[:, None, None, None]  # of the partner in each pixel
        if own.pasted is not None:
            inside = boxes.inside(own.pasted, self.size)
            share = share + inside.float()
            weight = weight + inside.sum((1, 2, 3)) / self.size**2
        images = torch.lerp(images, self._render(own.partner), share)
        return Batch(images, self.labels[indices], self.labels[own.partner], weight)

    def _select(self, view: int) -> None:
        """Make a view the current one: draw its parameters and, if memory allows, render it for all images."""
        if view == self._view:
            return
        self._parameters = draw_view(self.settings, self.view_seed, view, len(self)).to(self.images.device)
        self._view, self._rendered = view, None
        if len(self) * self.images.shape[1] * self.size**2 * 4 <= RENDER_AHEAD_BYTES:
            self._rendered = self._render(torch.arange(len(self), device=self.images.device))

    def _render(self, indices: torch.Tensor) -> torch.Tensor:
        if self._rendered is not None:
            return self._rendered[indices]
        settings, parameters = self.settings, self._parameters.at(indices)
        images = _geometry(self.images[indices], parameters, settings, self.size)
        if parameters.ops is not None:
            images = auto.apply(images, parameters.ops, parameters.magnitudes)
        if parameters.jitter_order is not None:
            images = jitter.apply(images, parameters.jitter_order, parameters.jitter_amounts, settings.jitter)
        if parameters.erased is not None:
            images = erase.apply(images, parameters.erased, settings.erase_fill, indices, self.view_seed, self._view)
        return images


def _geometry(images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, size: int) -> torch.Tensor:
    """Crop, shift, mirror and zoom uint8 images (B, C, H, W), and resize them to (B, C, size, size) float32 in 0..1.

    Without zoom and crop, pixels are moved without interpolation and then resized as at test time.
    """
    shift_x, shift_y, flip, zoom = parameters.shift_x, parameters.shift_y, parameters.flip, parameters.zoom
    if parameters.crop is not None:
        return _cropped(images, parameters, settings, size)
    if settings.scale:
        return _zoomed(images, shift_x, shift_y, flip, zoom, size)
    if settings.shift or settings.flip:
        images = _moved(images, shift_x, shift_y, flip)
    return resize(images.float().div_(255), size)


def _cropped(images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, size: int) -> torch.Tensor:
    """Shift and zoom the stored images, then cut out the crops, mirror and resize them."""
    shift_x, shift_y, unflipped = parameters.shift_x, parameters.shift_y, torch.zeros_like(parameters.flip)
    if settings.scale:
        images = _sampled(images, shift_x, shift_y, unflipped, parameters.zoom, *images.shape[-2:])
    elif settings.shift:
        images = _moved(images, shift_x, shift_y, unflipped)
    return crop.apply(images, parameters.crop, parameters.flip, size)


def _moved(images: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Shift by whole pixels and mirror, by indexing. Pixels from outside the image are zero."""
    batch, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) + shift_y[:, None]
    columns = torch.arange(width, device=images.device) + shift_x[:, None]
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    source = source.reshape(batch, 1, -1).expand(-1, channels, -1)
    moved = images.reshape(batch, channels, -1).gather(2, source).reshape(images.shape)
    return moved * inside[:, None]


def _zoomed(images: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, flip: torch.Tensor,
            zoom: torch.Tensor, size: int) -> torch.Tensor:
    """Zoom, shift, mirror and enlarge in one bilinear sampling. Pixels from outside the image are zero.

    Images that must shrink are first sampled at the stored size, and then resized as at test time, antialiased.
    """
    height, width = images.shape[-2:]
    return resize(_sampled(images, shift_x, shift_y, flip, zoom, max(size, height), max(size, width)), size)


def _sampled(images: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, flip: torch.Tensor,
             zoom: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Zoom, shift and mirror uint8 images (B, C, H, W) by bilinear sampling: (B, C, rows, columns) in 0..1."""
    batch, channels, height, width = images.shape
    theta = torch.zeros(batch, 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(flip, -1.0, 1.0) / zoom
    theta[:, 1, 1] = 1 / zoom
    theta[:, 0, 2] = torch.where(flip, -1.0, 1.0) * 2 * shift_x / width
    theta[:, 1, 2] = 2 * shift_y / height
    grid = F.affine_grid(theta, [batch, channels, rows, columns], align_corners=False)
    return F.grid_sample(images.float().div_(255), grid, mode="bilinear", padding_mode="zeros", align_corners=False)

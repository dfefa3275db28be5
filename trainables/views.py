"""Deterministic augmentation: view v of image i is a pure function of (view seed, v, i).

All randomness of a view is drawn here, for all images at once, from a counter-based generator keyed by (view seed,
view). Nothing depends on batches or on their order, so teacher and student see the same view, each at its own image
size, and the teacher's logits can be computed beforehand.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from kdstudy.trainables.settings import ViewSettings

# A whole epoch's view is rendered at once if it fits into this; otherwise each batch is rendered by itself.
RENDER_AHEAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each of N images in one view. All tensors are (N,)."""

    shift_x: torch.Tensor  # int64, pixels of the stored image
    shift_y: torch.Tensor  # likewise
    flip: torch.Tensor  # bool
    zoom: torch.Tensor  # float32, 1 leaves the size unchanged
    partner: torch.Tensor  # int64, index of the image that is mixed in
    partner_weight: torch.Tensor  # float32, 0 to settings.mixup


def draw_view(settings: ViewSettings, view_seed: int, view: int, images: int) -> ViewParameters:
    """Draw one view's parameters for a number of images. Entry i depends on (view_seed, view, i) alone, except for the
    mixup partner, which also depends on that number."""
    uniform = np.random.Generator(np.random.Philox(key=[view_seed, view])).random((images, 6))
    steps = 2 * settings.shift + 1
    return ViewParameters(
        shift_x=torch.from_numpy((uniform[:, 0] * steps).astype(np.int64) - settings.shift),
        shift_y=torch.from_numpy((uniform[:, 1] * steps).astype(np.int64) - settings.shift),
        flip=torch.from_numpy((uniform[:, 2] < 0.5) & settings.flip),
        zoom=torch.from_numpy((1 + settings.scale * (2 * uniform[:, 3] - 1)).astype(np.float32)),
        partner=torch.from_numpy((uniform[:, 4] * images).astype(np.int64)),
        partner_weight=torch.from_numpy((settings.mixup * uniform[:, 5]).astype(np.float32)),
    )


@dataclass(frozen=True)
class Batch:
    """One view of some images, ready for a model. The last two are None without mixup."""

    images: torch.Tensor  # (B, C, size, size) float32, 0..1
    labels: torch.Tensor  # (B,) int64
    partner_labels: torch.Tensor | None  # (B,) int64
    partner_weight: torch.Tensor | None  # (B,) float32


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
        parameters = self._parameters
        images = self._render(indices)
        if not self.settings.mixup:
            return Batch(images, self.labels[indices], None, None)
        partner, weight = parameters.partner[indices], parameters.partner_weight[indices]
        images = torch.lerp(images, self._render(partner), weight[:, None, None, None])
        return Batch(images, self.labels[indices], self.labels[partner], weight)

    def _select(self, view: int) -> None:
        """Make a view the current one: draw its parameters and, if memory allows, render it for all images."""
        if view == self._view:
            return
        drawn = draw_view(self.settings, self.view_seed, view, len(self))
        device = self.images.device
        self._parameters = ViewParameters(**{name: value.to(device) for name, value in vars(drawn).items()})
        self._view, self._rendered = view, None
        if len(self) * self.images.shape[1] * self.size**2 * 4 <= RENDER_AHEAD_BYTES:
            self._rendered = self._render(torch.arange(len(self), device=device))

    def _render(self, indices: torch.Tensor) -> torch.Tensor:
        if self._rendered is not None:
            return self._rendered[indices]
        parameters = self._parameters
        return render(self.images[indices], parameters.shift_x[indices], parameters.shift_y[indices],
                      parameters.flip[indices], parameters.zoom[indices], self.settings, self.size)


def render(images: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, flip: torch.Tensor,
           zoom: torch.Tensor, settings: ViewSettings, size: int) -> torch.Tensor:
    """Shift, mirror and zoom uint8 images (B, C, H, W), and resize them to (B, C, size, size) float32 in 0..1.

    shift_x, shift_y, flip, zoom: (B,), as in ViewParameters. Without zoom, pixels are moved without interpolation and
    then resized as at test time.
    """
    if settings.scale:
        return _zoomed(images, shift_x, shift_y, flip, zoom, size)
    if settings.shift or settings.flip:
        images = _moved(images, shift_x, shift_y, flip)
    return resize(images.float() / 255, size)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (B, C, H, W) in 0..1 to (B, C, size, size), as timm's transform at test time does for most models:
    bicubic, antialiased when shrinking."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp_(0, 1)


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
    batch, channels, height, width = images.shape
    rows, columns = max(size, height), max(size, width)
    theta = torch.zeros(batch, 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(flip, -1.0, 1.0) / zoom
    theta[:, 1, 1] = 1 / zoom
    theta[:, 0, 2] = torch.where(flip, -1.0, 1.0) * 2 * shift_x / width
    theta[:, 1, 2] = 2 * shift_y / height
    grid = F.affine_grid(theta, [batch, channels, rows, columns], align_corners=False)
    sampled = F.grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return resize(sampled, size)

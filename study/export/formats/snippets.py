"""Lines of Python with which a deployer classifies an image file as the study would, without kdstudy.

They do what trainables/sources/sizes.py does to a file (its shorter side resized to the stored size, the middle cut
out), and what trainables/augment/crop.py does to bring that to the model's size.
"""

import json
from typing import Literal

from kdstudy.export.formats.base import Deployable

FILE = "image.jpg"
BEST = 5  # classes that are printed


def text(value: str) -> str:
    """A Python literal for a text."""
    return json.dumps(value)


def images(deployable: Deployable, library: Literal["numpy", "torch"], outside: bool) -> list[str]:
    """Lines that make `images` (1, C, H, W) float32 in 0..1 out of a file. They need `np`, `Image` and, for the library
    torch, `torch`. outside: whether they also resize to the model's size; otherwise the model does."""
    stored, size, channels = deployable.splits.image_size, deployable.model.size, deployable.splits.channels
    mode, shape = ("RGB", f"({stored}, {stored}, 3)") if channels == 3 else ("L", f"({stored}, {stored}, 1)")
    lines = [f"size = {stored}  # pixels, at which the study stored its images: shorter side resized, middle cut out"]
    if deployable.stretched:
        lines.insert(0, "# This study stretched the images' brightness first (data.stretch): do that to yours too.")
    lines += [
        f"picture = Image.open({text(FILE)})",
        "scale = size / min(picture.size)",
        "sides = [max(size, round(side * scale)) for side in picture.size]",
        "picture = picture.resize(sides, Image.Resampling.BICUBIC)",
        "left, top = [(side - size) // 2 for side in sides]",
        f'picture = picture.crop((left, top, left + size, top + size)).convert("{mode}")',
        f"images = np.asarray(picture, np.float32).reshape{shape}.transpose(2, 0, 1)[None] / 255",
    ]
    if library == "torch":
        lines.append("images = torch.from_numpy(images)")
    if outside and size != stored:
        lines += _resized(size, library)
    return lines


def _resized(size: int, library: str) -> list[str]:
    if library == "torch":
        return [f'images = torch.nn.functional.interpolate(images, ({size}, {size}), mode="bicubic", antialias=True)'
                ".clamp(0, 1)"]
    return [f"resized = [Image.fromarray(channel).resize(({size}, {size}), Image.Resampling.BICUBIC) for channel in "
            "images[0]]",
            "images = np.stack(resized)[None].clip(0, 1)"]


def best(deployable: Deployable, names: str) -> list[str]:
    """Lines that print the names of the best classes by `logits` (classes,), a NumPy array. names: an expression, the
    list of all."""
    number = min(BEST, len(deployable.splits.class_names))
    return [f"names = {names}", f"print([names[index] for index in logits.argsort()[::-1][:{number}]])"]

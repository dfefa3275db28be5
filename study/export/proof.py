"""Whether an exported file is the model that the study tested: its logits, computed by a process that cannot import
kdstudy, against those that the study's own code computes."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.errors import StudyFailedError
from kdstudy.export import standalone
from kdstudy.export.formats.base import Format
from kdstudy.trainables.messages import one_line

TIES = 0.002  # the share of images whose prediction rounding may change, on another device or in another runtime
PROBES = 8  # images for which an export keeps its logits
COARSE = 8  # pixels of a probe per side, before it is enlarged: smoother than noise, as images are


@dataclass(frozen=True)
class Proof:
    """What an exported file predicts for the test images.

    accuracy: a share, 0 to 1. agreement: the share of images for which it predicts what the model in the study
    predicts. largest_difference: of its logits from that model's, in logits; as_share: that as a share of the standard
    deviation of all logits. fresh_process: whether it was loaded in a process of its own.
    """

    accuracy: float
    images: int
    agreement: float
    largest_difference: float
    as_share: float
    fresh_process: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(kind: Format, own: np.ndarray, labels: np.ndarray, logits: np.ndarray, fresh_process: bool) -> Proof:
    """Compare an exported model with the study's.

    own, logits: (N, classes), of the exported model and of the study's. labels: (N,). Raises StudyFailedError if they
    differ by more than rounding, unless the format allows that.
    """
    if own.shape != logits.shape or not np.isfinite(own).all():
        raise StudyFailedError(f"the model exported as {kind.name} returns logits of the shape {own.shape}, not all "
                               f"finite, instead of {logits.shape}")
    difference = float(np.abs(own - logits).max())
    proof = Proof(float((own.argmax(1) == labels).mean()), len(labels),
                  float((own.argmax(1) == logits.argmax(1)).mean()), difference, difference / float(logits.std()),
                  fresh_process)
    if kind.largest_difference is not None and (
            proof.as_share > kind.largest_difference or 1 - proof.agreement > max(TIES, 1 / len(labels))):
        raise StudyFailedError(f"the model exported as {kind.name} is not the one that was tested: its logits differ "
                               f"by up to {difference:.2g}, and it predicts the same for "
                               f"{100 * proof.agreement:.2f} % of {len(labels)} test images")
    return proof


def run(folder: Path, kind: str, images: Sequence[np.ndarray], *, function: str | None = None,
        fresh_process: bool = True) -> list[np.ndarray]:
    """The logits (N, classes) of the model in a folder, for each array of images (N, C, H, W) uint8.

    function: the only function that the folder may name as its model. Raises StudyFailedError if the model cannot be
    loaded."""
    if not fresh_process:
        return standalone.logits(folder, kind, list(images), function)
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for number, part in enumerate(images):
            files += [Path(temporary) / f"images{number}.npy", Path(temporary) / f"logits{number}.npy"]
            np.save(files[-2], part)
        done = subprocess.run([sys.executable, "-P", standalone.__file__, folder.absolute(), kind, function or "",
                               *files], capture_output=True, text=True, errors="replace",
                              env=os.environ | {"HF_HUB_OFFLINE": "1"})  # nothing is fetched, whatever the files say
        if done.returncode or not files[-1].exists():
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise StudyFailedError(f"the model exported as {kind} cannot be loaded without kdstudy: {one_line(last)}")
        return [np.load(file) for file in files[1::2]]


def probes(channels: int, size: int) -> np.ndarray:
    """Images (PROBES, channels, size, size) uint8 that are the same everywhere and always, so that an export can be
    checked without data. size: pixels."""
    shape = PROBES, channels, COARSE, COARSE
    coarse = np.frombuffer(hashlib.shake_256(b"kdstudy").digest(int(np.prod(shape))), np.uint8).reshape(shape)
    places = np.arange(size) * COARSE // size
    return np.ascontiguousarray(coarse[:, :, places][:, :, :, places])

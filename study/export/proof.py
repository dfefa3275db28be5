"""Whether an exported file is the model that the study tested: its logits, computed by a process that cannot import
kdstudy, against those that the study's own code computes."""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.errors import StudyFailedError
from kdstudy.export import standalone
from kdstudy.export.formats.base import Format
from kdstudy.trainables.messages import one_line

TIES = 0.002  # the share of images whose prediction rounding may change, on another device or in another runtime


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


def prove(folder: Path, kind: Format, images: np.ndarray, labels: np.ndarray, logits: np.ndarray, *,
          function: str | None = None, fresh_process: bool = True) -> Proof:
    """Load a model from a folder and compare it with the study's.

    images: (N, C, H, W) uint8. labels: (N,). logits: (N, classes), of the study's model. function: the only function
    that the folder may name as its model. Raises StudyFailedError if the model cannot be loaded or differs by more than
    rounding.
    """
    own = _in_fresh_process(folder, kind.name, images, function) if fresh_process else standalone.logits(
        folder, kind.name, images, function)
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


def _in_fresh_process(folder: Path, kind: str, images: np.ndarray, function: str | None) -> np.ndarray:
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "images.npy", Path(temporary) / "logits.npy"
        np.save(source, images)
        done = subprocess.run([sys.executable, standalone.__file__, folder.absolute(), kind, source, target,
                               *([function] if function else [])], capture_output=True, text=True)
        if done.returncode or not target.exists():
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise StudyFailedError(f"the model exported as {kind} cannot be loaded without kdstudy: {one_line(last)}")
        return np.load(target)

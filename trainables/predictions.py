"""A model's predictions for the test images, in a file."""

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdstudy.trainables.device import to_device
from kdstudy.trainables.evaluator import Evaluator
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.models import Classifier


def write_predictions(model: Classifier, images: ImageSet, path: Path) -> None:
    """Compute a model's logits for some images, and write them as `write_logits` does."""
    write_logits(plain_logits(model, images), images.labels, path)


def plain_logits(model: Classifier, images: ImageSet) -> torch.Tensor:
    """Logits (N, C), computed in fp32 and in the plain memory format, as by anyone who loads the exported weights."""
    device = next(model.parameters()).device
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    return Evaluator(*to_device(images, device), model.size).logits(model)


def write_logits(logits: torch.Tensor, labels: np.ndarray, path: Path) -> None:
    """Write Parquet with one row per image: image (its number), label, prediction, confidence (the probability of the
    predicted class) and logits (fp16).

    logits: (N, C) fp32. labels: (N,) integers.
    """
    half = logits.half().cpu().numpy()
    table = pa.table({
        "image": pa.array(np.arange(len(labels), dtype=np.int32)),
        "label": pa.array(labels.astype(np.int32)),
        "prediction": pa.array(logits.argmax(1).cpu().numpy().astype(np.int32)),
        "confidence": pa.array(logits.softmax(1).amax(1).cpu().numpy().astype(np.float32)),
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1]),
    })
    pq.write_table(table, path, compression="zstd")

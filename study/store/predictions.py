"""Compressed copies of prediction files."""

from collections.abc import Sequence
from pathlib import Path

from kdstudy.trainables.messages import one_line

COLUMNS = ("image", "label", "prediction", "confidence")
FEWEST = ("label", "prediction")  # that say which images are right


def copy_predictions(source: Path, target: Path, *, logits: bool, columns: Sequence[str] = COLUMNS) -> None:
    """Copy these columns of a Parquet file of predictions (one row per image), with or without the logits.

    Raises ValueError where it cannot be read."""
    import pyarrow.parquet as pq  # takes long to import

    try:
        table = pq.read_table(source, columns=[*columns, *(["logits"] if logits else [])])
    except Exception as error:  # of many kinds
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from None
    pq.write_table(table, target, compression="zstd", compression_level=19)

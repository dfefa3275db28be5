"""Compressed copies of prediction files."""

from pathlib import Path

from kdstudy.trainables.messages import one_line

COLUMNS = ("image", "label", "prediction")


def copy_predictions(source: Path, target: Path, *, logits: bool, confidence: bool = True) -> None:
    """Copy a Parquet file of predictions (one row per image), with or without the logits and the confidence.

    Raises ValueError where it cannot be read."""
    import pyarrow.parquet as pq  # takes long to import

    try:
        more = [name for name, kept in (("confidence", confidence), ("logits", logits)) if kept]
        table = pq.read_table(source, columns=[*COLUMNS, *more])
    except Exception as error:  # of many kinds
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from None
    pq.write_table(table, target, compression="zstd", compression_level=19)

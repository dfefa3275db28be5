"""Compressed copies of prediction files."""

from pathlib import Path

from kdstudy.trainables.messages import one_line

COLUMNS = ("image", "label", "prediction", "confidence")


def copy_predictions(source: Path, target: Path, *, logits: bool) -> None:
    """Copy a Parquet file of predictions (one row per image), with or without the logits.

    Raises ValueError where it cannot be read."""
    import pyarrow.parquet as pq  # takes long to import

    try:
        table = pq.read_table(source, columns=[*COLUMNS, *(["logits"] if logits else [])])
    except Exception as error:  # of many kinds
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from None
    pq.write_table(table, target, compression="zstd", compression_level=19)

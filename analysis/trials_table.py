"""The trials of a study's searches as a table for a terminal."""

from typing import Any

import pandas as pd

from kdstudy.analysis.console_table import ConsoleTable
from kdstudy.analysis.number_text import show_number
from kdstudy.analysis.study_files import SEARCH_STAGES, StudyFiles

COLUMNS = ("trial", "hyperparameters", "validation %", "best %", "epochs", "")
KEYS = {"val_accuracy": "last_validation_accuracy", "best_accuracy": "best_validation_accuracy", "epochs": "epochs",
        "trial": "trial"}
LARGEST_FIRST = ("last_validation_accuracy", "best_validation_accuracy", "epochs")


def sort_keys(study: StudyFiles) -> list[str]:
    """What the trials can be sorted by."""
    return [*KEYS, *study.parameter_names]


def trials_table(study: StudyFiles, stage: str | None, key: str, top: int | None) -> ConsoleTable:
    """The trials of one search, or of both, sorted. Trials without a value come last; of equal ones, the first trial
    comes first.

    key: one of `sort_keys`. top: how many rows; None for all.
    """
    column = KEYS.get(key, key)
    found = study.trials[study.trials["stage"].isin([stage] if stage else SEARCH_STAGES)]
    found = found.sort_values(["stage", "trial"]).sort_values(
        column, kind="stable", ascending=column not in LARGEST_FIRST, na_position="last", key=_comparable)
    rows = found.head(top if top else len(found)).to_dict("records")
    return ConsoleTable(tuple(_cells(row, study.parameter_names) for row in rows),
                        tuple(bool(row["ended"] == "complete") for row in rows), COLUMNS)


def _comparable(values: pd.Series) -> pd.Series:
    """The values, as text where numbers and words are among them, such as 0 and "all"."""
    return values if pd.api.types.is_numeric_dtype(values) else values.astype(str).where(values.notna())


def _cells(row: dict[str, Any], names: list[str]) -> tuple[str, ...]:
    parameters = " ".join(f"{name} {value if isinstance(value := row[name], str) else show_number(value)}"
                          for name in names if not pd.isna(row[name]))
    return (f"{row['stage']} {row['trial']}", parameters, _percent(row["last_validation_accuracy"]),
            _percent(row["best_validation_accuracy"]), str(row["epochs"]), _ending(row))


def _ending(row: dict[str, Any]) -> str:
    return f"failed: {row['reason']}" if row["ended"] == "failed" else row["ended"]


def _percent(share: float | None) -> str:
    return "" if share is None or pd.isna(share) else f"{100 * share:.2f}"

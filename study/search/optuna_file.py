"""Export a search to a SQLite file for optuna-dashboard."""

import contextlib
import os
import sqlite3
from pathlib import Path

import optuna
from sqlalchemy.pool import StaticPool

from kdstudy.config.sections import Range
from kdstudy.search.proposer import frozen_trials
from kdstudy.store.record import METRIC, Record
from kdstudy.trainables.paths import remove


def write_optuna_file(space: dict[str, Range], record: Record, path: Path, study_name: str) -> None:
    """Write the search as a SQLite file that optuna-dashboard opens.

    Built in memory first, since Optuna would sync a file to disk after every trial.
    """
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"poolclass": StaticPool})
    study = optuna.create_study(storage=storage, study_name=study_name, direction="maximize")
    study.set_metric_names([METRIC])
    study.add_trials(frozen_trials(space, record.trials.values()))
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    remove(draft, path.parent)
    with contextlib.closing(sqlite3.connect(draft)) as file, storage.engine.connect() as memory:
        memory.connection.driver_connection.backup(file)
    storage.remove_session()
    storage.engine.dispose()
    draft.replace(path)

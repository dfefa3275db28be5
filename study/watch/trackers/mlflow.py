"""The MLflow tracker."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.store.record import TrialState
from kdstudy.store.storage import Storage
from kdstudy.watch.trackers.base import Run, digest, location_of, values_of

MOST_VALUES = 900  # values per request that MLflow accepts


class MLflow:
    """One MLflow run per trial, using Ray's MLflowLoggerCallback. Existing runs are resumed.

    The callback contacts the server twice per value, so reports are sent here in one batch with their own times.
    watch.mlflow is a tracking URI, or a folder in which mlflow.db is created, since MLflow no longer writes plain
    files. The study's storage location tells its runs from those of other studies.
    """

    setting = package = "mlflow"
    folder = None

    def __init__(self, config: StudyConfig, storage: Storage):
        where, location = config.watch.mlflow, location_of(storage)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # noqa: F401  configures its logging on import
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._uri, self._study = where, digest(location)
        if "://" not in where and not where.startswith("databricks"):
            folder = Path(os.path.expanduser(where)).absolute()
            with _made(folder, "watch.mlflow"):
                folder.mkdir(parents=True, exist_ok=True)
            self._uri = f"sqlite:///{folder}/mlflow.db"
        self._callback = MLflowLoggerCallback(tracking_uri=self._uri, experiment_name=config.name,
                                              tags={"study": location, "study.id": self._study})
        self._runs: dict[str, Any] = {}  # this study's runs by name, as of the start

    def open(self) -> bool:
        from mlflow import MlflowClient

        self._callback.setup()
        self._client = MlflowClient(tracking_uri=self._uri)
        token = None
        while token != "":
            page = self._client.search_runs([self._callback.mlflow_util.experiment_id], page_token=token,
                                            filter_string=f"tags.`study.id` = '{self._study}'")
            self._runs |= {run.data.tags["trial_name"]: run for run in page}
            token = page.token or ""
        return True

    def begin(self, run: Run, trial: TrialState) -> float:
        known = self._runs.pop(run.name, None)
        if known is None and run in self._callback._trial_runs:  # started here before a failure
            known = self._client.get_run(self._callback._trial_runs[run])
        if known is not None:
            self._callback._trial_runs[run] = known.info.run_id
        if known is None or not known.data.params:
            self._callback.log_trial_start(run)
        return known.data.metrics.get("epoch", 0) if known else 0

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        values = [Metric(name, value, int(1000 * report["time"]), report["epoch"]) for report in reports
                  for name, value in (values_of(report) | {"epoch": report["epoch"]}).items()]
        for start in range(0, len(values), MOST_VALUES):
            self._client.log_batch(self._callback._trial_runs[run], metrics=values[start: start + MOST_VALUES])

    def end(self, run: Run, failed: bool) -> None:
        self._callback.log_trial_end(run, failed)

    def close(self, seconds: float) -> None:
        pass


@contextlib.contextmanager
def _made(folder: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{setting}: cannot create {folder}: {error.strerror}; choose another folder") from None

"""The protocol that trackers implement, and a trial as trackers see it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from kdstudy.config.settings import StudyConfig
from kdstudy.store.record import TrialState
from kdstudy.store.storage import Storage


@dataclass(frozen=True)
class Run:
    """A trial as a tracker sees it. It has the attributes that Ray's logger callbacks expect of a Tune trial.

    local_path: the folder where W&B writes. config: a flat dict of the parameters and identifying values.
    """

    name: str  # stage folder and trial number
    stage: str = field(compare=False)
    number: int = field(compare=False)
    begun: float = field(compare=False)
    trial_id: str = field(compare=False)  # the same in every driver
    experiment_dir_name: str = field(compare=False)  # W&B's group
    local_path: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return self.name


class Tracker(Protocol):
    """A destination for curves. Its exceptions are shown to the user once, and the call is retried later.

    setting: its key in `[watch]`; an empty or false value turns it off. package: the package that it needs and the
    kdstudy extra that installs it; None if it comes with kdstudy. folder: its folder in the study, if it writes to one.
    """

    setting: ClassVar[str]
    package: ClassVar[str | None]
    folder: ClassVar[str | None]

    def __init__(self, config: StudyConfig, storage: Storage): ...

    def open(self) -> bool:
        """Prepare for use. Returns False if it is too early for that."""

    def begin(self, run: Run, trial: TrialState) -> float:
        """Start or resume a run. Returns the last epoch that the tracker already has."""

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        """Send reports, in order."""

    def end(self, run: Run, failed: bool) -> None:
        """Mark a run as ended."""

    def close(self, seconds: float) -> None:
        """Finish pending work, within `seconds`."""


def location_of(storage: Storage) -> str:
    """Return an absolute, unique name of the study's storage."""
    return storage.uri or str(storage.folder.resolve())


def digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def values_of(report: dict[str, Any]) -> dict[str, float]:
    """Return a report's finite numbers by metric name."""
    return {name: float(value) for name, value in report["metrics"].items() if isinstance(value, int | float)}

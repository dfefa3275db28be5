"""What a tracker must offer, and a trial as trackers see it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from kdstudy.config.settings import StudyConfig
from kdstudy.store.record import TrialState
from kdstudy.store.storage import Storage


@dataclass(frozen=True)
class Run:
    """A trial as it is watched. To Ray's callbacks it is what they ask of a trial of Tune's; they know it by its name.

    local_path: where W&B writes. config: its parameters and what tells it apart, flat.
    """

    name: str  # the stage's folder and the trial's number
    stage: str = field(compare=False)
    number: int = field(compare=False)
    begun: float = field(compare=False)
    trial_id: str = field(compare=False)  # the same for every driver
    experiment_dir_name: str = field(compare=False)  # W&B groups by it
    local_path: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return self.name


class Tracker(Protocol):
    """Where curves go. What it raises is told to the user once, and tried again later.

    setting: in `[watch]`; where that is empty or false, the tracker is not wanted. package: that it needs, and the
    extra that brings it; None where it comes with kdstudy. folder: in the study's, where it writes to one.
    """

    setting: ClassVar[str]
    package: ClassVar[str | None]
    folder: ClassVar[str | None]

    def __init__(self, config: StudyConfig, storage: Storage): ...

    def open(self) -> bool:
        """Make ready; False where it is too early for that."""

    def begin(self, run: Run, trial: TrialState) -> float:
        """Take up a run; the epoch up to which it is there already."""

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        """Take reports, in their order."""

    def end(self, run: Run, failed: bool) -> None:
        """A run has ended."""

    def close(self, seconds: float) -> None:
        """Nothing comes any more; so long there is to bring to an end what is under way."""


def location_of(storage: Storage) -> str:
    """Where the study is stored, in a way that tells it from all others."""
    return storage.uri or str(storage.folder.resolve())


def digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def values_of(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report by their names."""
    return {name: float(value) for name, value in report["metrics"].items() if isinstance(value, int | float)}

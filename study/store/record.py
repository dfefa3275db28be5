"""The append-only record of a stage, from which resumes, tables and plots are derived.

Each event is one JSON line, written to disk before the trial continues. Trials are identified by kdstudy's own numbers.

    session     a driver started to work on this stage: process, host and planned trials
    prior       finished trials of another study for a warm start: parameters, accuracies by epoch, state
    trial       a trial was assigned to a worker: number, parameters, seeds, origin, protected, label, and its start in
                virtual time where the search decides in virtual time
    report      metrics of a trial at an epoch, where it ran, and the decision: continue, stop, complete or failed
    decision    a later decision on a report, which had to wait for other trials' reports. What a trial did after the
                epoch at which it is stopped does not count
    checkpoint  path from which a trial can resume
    end         a trial failed without a report: reason
    retry       a failed trial will run again
"""

import json
import math
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdstudy.errors import StudyFailedError
from kdstudy.store.files import is_json
from kdstudy.store.storage import Storage
from kdstudy.trainables.credentials import redact

METRIC = "validation_accuracy"
SAID_BY_OTHERS = ("reason", "after")  # event fields with text from exceptions
BEFORE_WORK = ("session", "prior", "retry")  # no driver was running in the time before these events
ENDINGS = {"stop": "stopped", "complete": "complete", "failed": "failed"}


@dataclass
class TrialState:
    """One trial, reconstructed from the record."""

    number: int
    parameters: dict[str, Any]
    seed: int
    view_seed: int
    origin: str
    protected: bool = False
    label: str = ""
    reports: list[dict[str, Any]] = field(default_factory=list)  # keys: sequence, time, epoch, decision, metrics
    checkpoint: dict[str, Any] | None = None  # keys: epoch, path
    state: str = "running"  # or complete, stopped, failed
    reason: str | None = None
    where: str | None = None  # node and GPUs of the last report
    begun: float = 0.0  # Unix time at which it first started
    start: int | None = None  # in virtual time, in epochs; None where the search decides at once
    decided: int = 0  # the last epoch with a decision, where the search decides in virtual time
    discarded: list[dict[str, Any]] = field(default_factory=list)  # reports after the epoch at which it was stopped
    retried_from: int | None = None  # the epoch that it had reached when it failed and was tried again

    @property
    def epoch(self) -> int:
        return self.reports[-1]["epoch"] if self.reports else 0

    def metric(self, name: str) -> float | None:
        return self.reports[-1]["metrics"].get(name) if self.reports else None

    @property
    def heard(self) -> float:
        """Unix time of the last report, or of the start if there is none."""
        return max([self.begun, *(report["time"] for report in self.reports[-1:])])

    def recorded(self, epoch: int) -> dict[str, Any] | None:
        return next((report for report in self.reports if report["epoch"] == epoch), None)


class Record:
    """A stage's record. The constructor reads it, the methods append to it. A half-written last line is dropped.

    Raises StorageError where the record cannot be written."""

    def __init__(self, path: Path, write: bool = True, storage: Storage | None = None):
        self.path, self._storage = path, storage or Storage(path.parent)
        self.trials: dict[int, TrialState] = {}
        self.prior: list[TrialState] = []  # trials of another study, with their own numbering
        self.prior_study: str | None = None
        self.session: dict[str, Any] = {}  # the last driver's session event: time, host, pid, epochs, wanted, …
        self.mismatches = 0
        self.first_mismatch: tuple[int, int] | None = None  # trial and epoch
        self.begun = 0.0
        self.seconds = 0.0  # of work, summed over all drivers
        self._sequence = 0
        self.last_time = 0.0
        self._read_to = 0  # byte offset
        if write and path.exists():
            _drop_torn_line(path)
        self._read_on(write)

    def catch_up(self) -> None:
        """Read events that the driver has appended since. For readers only."""
        self._read_on(write=False)

    def _read_on(self, write: bool) -> None:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read_to)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read(whole.split(b"\n"), write)
        self._read_to += len(whole)

    def _read(self, lines: list[bytes], write: bool) -> None:
        for number, line in enumerate(filter(None, lines), 1):
            try:
                self._replay(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if write:  # do not append after a line that cannot be read
                    raise StudyFailedError(f"{self.path} is damaged at line {number}; restore it from a copy, or "
                                           "remove that line and those after it, to run that part again") from None
                return

    def reopened(self) -> "Record":
        """Return a new record, read again from disk."""
        return Record(self.path, storage=self._storage)

    def begin_session(self, **facts: Any) -> None:
        self._append({"event": "session", "host": socket.gethostname(), "pid": os.getpid(), **facts})

    def add_prior(self, study: str, trials: list[dict[str, Any]]) -> None:
        """Record another study's trials: parameters, accuracies as (epoch, value) pairs, state (complete, stopped or
        failed)."""
        self._append({"event": "prior", "study": study, "trials": trials})

    def add_trial(self, trial: TrialState) -> None:
        self._append({"event": "trial", "trial": trial.number, "parameters": trial.parameters, "seed": trial.seed,
                      "view_seed": trial.view_seed, "origin": trial.origin, "protected": trial.protected,
                      "label": trial.label, **({} if trial.start is None else {"start": trial.start})})

    def decide(self, number: int, epoch: int, decision: str) -> None:
        """Enter a decision on a report that is on record."""
        self._append({"event": "decision", "trial": number, "epoch": epoch, "decision": decision})

    def report(self, number: int, epoch: int, decision: str, metrics: dict[str, Any],
               reason: str | None = None, where: str | None = None) -> None:
        moved = {"where": where} if where and where != self.trials[number].where else {}
        self._append({"event": "report", "trial": number, "epoch": epoch, "decision": decision, "reason": reason,
                      **moved, "metrics": {name: _finite(value) for name, value in metrics.items()}})

    def mismatch(self, number: int, epoch: int, metric: str, recorded: float, seen: float) -> None:
        self._append({"event": "mismatch", "trial": number, "epoch": epoch, "metric": metric,
                      "recorded": _finite(recorded), "seen": _finite(seen)})

    def checkpoint(self, number: int, epoch: int, path: str) -> None:
        self._append({"event": "checkpoint", "trial": number, "epoch": epoch, "path": path})

    def fail(self, number: int, reason: str) -> None:
        self._append({"event": "end", "trial": number, "reason": reason})

    def retry(self, number: int) -> None:
        self._append({"event": "retry", "trial": number})

    def mismatch_note(self) -> str:
        """Say how many repeated reports came out differently, and from where on; empty if none did."""
        if self.first_mismatch is None:
            return ""
        trial, epoch = self.first_mismatch
        reports = "1 repeated report" if self.mismatches == 1 else f"{self.mismatches} repeated reports"
        return f"{reports} came out differently, first trial {trial}, epoch {epoch}"

    def reports_in_order(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (trial number, report) of all trials in chronological order."""
        reports = [(trial.number, report) for trial in self.trials.values() for report in trial.reports]
        return sorted(reports, key=lambda pair: pair[1]["sequence"])

    def _append(self, event: dict[str, Any]) -> None:
        event = {"sequence": self._sequence, "time": round(time.time(), 3), **_without_secrets(event)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._storage.append(self.path, json.dumps(event, allow_nan=False), event["sequence"])
        self._replay(event)

    def _replay(self, event: dict[str, Any]) -> None:
        self._sequence = event["sequence"] + 1
        self._count_time(event)
        kind, number = event["event"], event.get("trial")
        if kind == "session":
            self.session |= event
        elif kind == "trial":
            self.trials[number] = TrialState(number, event["parameters"], event["seed"], event["view_seed"],
                                             event["origin"], event["protected"], event["label"], begun=event["time"],
                                             start=event.get("start"))
        elif kind == "report":
            trial = self.trials[number]
            trial.reports.append({key: event[key] for key in ("sequence", "time", "epoch", "decision", "metrics")})
            trial.state = ENDINGS.get(event["decision"], "running")
            trial.reason, trial.where = event["reason"], event.get("where", trial.where)
        elif kind == "decision":
            _decide(self.trials[number], event["epoch"], event["decision"])
        elif kind == "checkpoint":
            self.trials[number].checkpoint = {"epoch": event["epoch"], "path": event["path"]}
        elif kind == "end":
            self.trials[number].state, self.trials[number].reason = "failed", event["reason"]
        elif kind == "retry":
            trial = self.trials[number]
            trial.reports = [report for report in trial.reports if report["decision"] != "failed"]
            trial.state, trial.reason = "running", None
            trial.retried_from = trial.epoch if trial.retried_from is None else trial.retried_from
        elif kind == "mismatch":
            self.mismatches += 1
            self.first_mismatch = self.first_mismatch or (number, event["epoch"])
        elif kind == "prior":
            self.prior_study = event["study"]
            self.prior = [_prior(number, trial) for number, trial in enumerate(event["trials"])]

    def _count_time(self, event: dict[str, Any]) -> None:
        if event["event"] not in BEFORE_WORK:
            self.seconds += event["time"] - self.last_time
        self.begun = self.begun or event["time"]
        self.last_time = event["time"]


def _decide(trial: TrialState, epoch: int, decision: str) -> None:
    trial.decided = epoch
    report = trial.recorded(epoch)
    if decision == "continue" or report is None:
        return
    report["decision"], trial.state = decision, ENDINGS[decision]
    if decision == "stop":
        counts = [report["epoch"] <= epoch and report["decision"] != "failed" for report in trial.reports]
        trial.discarded = [report for report, kept in zip(trial.reports, counts, strict=True) if not kept]
        trial.reports = [report for report, kept in zip(trial.reports, counts, strict=True) if kept]
        trial.reason = None  # it may have failed after that epoch


def _prior(number: int, trial: dict[str, Any]) -> TrialState:
    reports = [{"epoch": epoch, "decision": "continue", "metrics": {"validation_accuracy": value}}
               for epoch, value in trial["accuracies"]]
    return TrialState(number, trial["parameters"], 0, 0, "prior", reports=reports, state=trial["state"])


def _drop_torn_line(path: Path) -> None:
    """Truncate a last line that a crash left half written."""
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    if content and not (content.endswith(b"\n") and is_json(content[last:])):
        with open(path, "r+b") as file:
            file.truncate(last)


def _without_secrets(event: dict[str, Any]) -> dict[str, Any]:
    """Redact secrets in exception texts, since records are shared."""
    return {name: redact(value) if name in SAID_BY_OTHERS and isinstance(value, str) else value
            for name, value in event.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

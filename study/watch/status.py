"""`kdstudy status`: a study's progress, read from its folder without torch or Ray."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdstudy.config.load import STUDY_FILE, load_study
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.store.files import read_json
from kdstudy.store.record import METRIC, Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.watch import progress
from kdstudy.watch.console import print_prose
from kdstudy.watch.display import clock

MOST_FAILURES = 10  # failures to list individually
MOST_NODES = 4
EVERY, EVERY_REMOTE = 5.0, 30.0  # seconds between updates from a folder, from an object store


class StageKind(Protocol):
    """The part of `kdstudy.stages.base.Stage` that works without an open study."""

    name: str

    def is_wanted(self, config: StudyConfig) -> bool: ...
    def trials_expected(self, config: StudyConfig) -> int | None: ...
    def images_per_epoch(self, data: dict[str, Any], trial: TrialState) -> int: ...


StageKinds = Callable[[StudyConfig], Sequence[StageKind]]


class Snapshot:
    """A study's state at the last update. kinds: returns all stages that a study with given settings may have."""

    def __init__(self, storage: Storage, kinds: StageKinds):
        self.storage, self._kinds = storage, kinds
        self.driver: str | None = None
        self.config: StudyConfig | None = None
        self.description: dict[str, Any] = {}
        self.stages: list[StageSnapshot] = []
        self._records: dict[Path, Record] = {}
        self.now = time.time()

    def update(self, fetch: bool = True) -> "Snapshot":
        """Read the current state. fetch: update the local copy first. Raises UserError if the study cannot be reached.
        """
        # Check for a driver before reading, so that everything is read that a driver wrote before it ended.
        driver = self.storage.driver()
        if fetch:
            self.storage.refresh()
        folder = self.storage.folder
        self.driver, self.now = driver, time.time()
        self.config = load_study(str(folder)) if (folder / STUDY_FILE).is_file() else None
        self.description = read_json(folder / "stages.json") or {}
        known = self._kinds(self.config) if self.config and self.description else ()
        wanted = [kind for kind in known if kind.is_wanted(self.config)]
        self.stages = [StageSnapshot(kind, self._folder_of(kind.name), self) for kind in wanted]
        return self

    def _folder_of(self, stage: str) -> Path | None:
        name = self.description["stages"].get(stage)
        return self.storage.folder / name if name and (self.storage.folder / name).is_dir() else None

    def record(self, stage: Path) -> Record:
        """Return a stage's current record, reading only the events added since."""
        if stage not in self._records:
            self._records[stage] = Record(stage / "record.jsonl", write=False)
        else:
            self._records[stage].catch_up()
        return self._records[stage]

    @property
    def complete(self) -> bool:
        return bool(self.stages) and all(stage.done for stage in self.stages)

    @property
    def own(self) -> list[Record]:
        """The records of stages that this study ran itself, not those copied from other studies."""
        return [stage.record for stage in self.stages
                if stage.record and stage.record.begun and "taken_from" not in (stage.done or {})]

    @property
    def verdict(self) -> str | None:
        results = read_json(self.storage.folder / "results" / "results.json") if self.complete else None
        return results.get("verdict") if isinstance(results, dict) else None

    def seconds_left(self) -> float | None:
        """Of the whole study; None before anything is known of it."""
        expected = {name: progress.Pending(**one) for name, one in (self.description.get("expected") or {}).items()}
        if not expected:
            return None
        runs, known, epoch_seconds = {}, {}, {}
        for stage in self.stages:
            epochs = stage.record.session.get("epochs") if stage.record else None
            if not epochs or not stage.trials:
                continue
            expected.pop(stage.name, None)
            seconds = progress.seconds_per_run(stage.trials, epochs)
            if seconds:
                epoch_seconds[stage.name] = seconds / epochs
            if stage.done is None:
                runs[stage.name] = stage.runs_left(epochs)
                known |= {stage.name: seconds} if seconds else {}
        pending = {stage.name: expected[stage.name] for stage in self.stages
                   if stage.name in expected and stage.done is None}
        running = sum(len(stage.running) for stage in self.stages if stage.done is None)
        return progress.study_seconds_left(runs, known, epoch_seconds, pending, running)

    def seconds_run(self) -> float:
        """The wall time of what this study has run itself, without the time between two drivers."""
        if not self.own:
            return 0.0
        span = max(record.last_time for record in self.own) - min(record.begun for record in self.own)
        return min(span, sum(record.seconds for record in self.own))


class StageSnapshot:
    """A stage's state at the last update. done: its done-mark, unless a trial is running."""

    def __init__(self, kind: StageKind, folder: Path | None, study: Snapshot):
        self.name, self._kind, self._study = kind.name, kind, study
        self.begun = folder is not None
        self.record = study.record(folder) if folder else None
        self.trials: list[TrialState] = list(self.record.trials.values()) if self.record else []
        done = read_json(folder / "done.json") if folder else None
        self.done = None if done is None or self._of("running") else done

    def _of(self, state: str) -> list[TrialState]:
        return [trial for trial in self.trials if trial.state == state]

    @property
    def running(self) -> list[TrialState]:
        """Trials that the current driver has started or received reports from. Earlier ones still wait to resume."""
        since = self.record.session.get("time", 0.0) if self.record else 0.0
        return [trial for trial in self._of("running") if trial.heard >= since]

    @property
    def wanted(self) -> int | None:
        """The number of trials planned: from the driver if known, else from the settings."""
        said = self.record.session.get("wanted") if self.record else None
        if said is None:
            said = self._kind.trials_expected(self._study.config)
        return said if said is None else max(said, len(self.trials))

    def line(self) -> tuple[Text, str]:
        """Return a one-line summary of the stage and its duration so far."""
        if self.done is not None:
            parts = [self.done["outcome"], *self._mismatches()]
            return Text.assemble(("✓ ", "green"), " · ".join(parts)), clock(self.done["seconds"])
        if not self.trials:
            return Text("begun" if self.begun else "not begun", style="dim"), ""
        if self._study.driver is None:
            parts = ["cut off", *self.counts(), *self._best(), f"`kdstudy run {self._study.storage}` continues it"]
            return Text.assemble(("‖ ", "yellow"), " · ".join(parts)), clock(self.record.seconds)
        parts = [*self.counts(), *self._best(), *self._pace(), self._silence()]
        return Text.assemble(("… ", "cyan"), " · ".join(parts)), clock(self.record.seconds)

    def counts(self) -> list[str]:
        """Describe how many trials have ended (of how many), are running (and where), were stopped or failed."""
        unfinished, running = self._of("running"), self.running if self._study.driver else []
        ended, wanted = len(self.trials) - len(unfinished), self.wanted
        parts = [f"{ended} of {wanted} trials" if wanted is not None else f"{ended} trials"]
        parts += [f"{len(running)} running{_shown_nodes(running)}"] if running else []
        waiting = len(unfinished) - len(running)
        parts += [f"{waiting} {'unfinished' if self._study.driver is None else 'to continue'}"] if waiting else []
        return parts + [f"{len(found)} {state}" for state in ("stopped", "failed") if (found := self._of(state))]

    def _mismatches(self) -> list[str]:
        note = self.record.mismatch_note() if self.record else ""
        return [note] if note else []

    def _best(self) -> list[str]:
        best = progress.best(self.trials)
        if best is None:
            return []
        return [f"best {100 * best.metric(METRIC):.1f} % ({progress.show_parameters(best.parameters)})"]

    def _pace(self) -> list[str]:
        pace = progress.pace(self.record)
        if pace is None:
            return []
        images = sum(epochs * self._kind.images_per_epoch(self._study.description["data"], self.record.trials[number])
                     for number, epochs in pace.epochs.items())
        parts = [f"{3600 * pace.ended / pace.seconds:,.3g} trials/h, {images / pace.seconds:,.0f} images/s"]
        left = self._seconds_left(pace)
        return parts + ([f"about {clock(left)} left"] if left is not None else [])

    def _seconds_left(self, pace: progress.Pace) -> float | None:
        epochs, wanted = self.record.session.get("epochs"), self.wanted
        if not epochs or wanted is None:
            return None
        return progress.seconds_left(self.runs_left(epochs), sum(pace.epochs.values()) / epochs, pace.seconds)

    def runs_left(self, epochs: int) -> float:
        """How many full runs of so many epochs are still to come."""
        wanted = self.wanted or len(self.trials)
        protected = self.record.session.get("protected", wanted)
        return progress.runs_left(self.record.trials, wanted, epochs, protected,
                                  bool(self.record.session.get("rungs")))

    def _silence(self) -> str:
        return f"last report {clock(max(0.0, self._study.now - self.record.last_time))} ago"

    def failures(self) -> list[str]:
        """Return one line per failed trial."""
        return [f"{self.name} trial {trial.number} failed: {_first_line(trial.reason)}" for trial in self._of("failed")]

    def news(self) -> tuple:
        """A value that changes whenever the stage has something new to show."""
        best = progress.best(self.trials)
        return (self.done is not None, self.begun, len(self.trials), len(self._of("running")), len(self._of("failed")),
                best and best.metric(METRIC))


def show_status(storage: Storage, console: Console, kinds: StageKinds) -> None:
    """Print a study's progress. Raises UserError if the study cannot be reached."""
    console.print(_page(_first_snapshot(storage, kinds), console), soft_wrap=True)


def follow_status(storage: Storage, console: Console, kinds: StageKinds, every: float | None = None) -> None:
    """Show a study's progress until its driver exits: redrawn in place on a terminal, one line per change in a log.

    every: seconds between updates.

    Raises StudyFailedError if the driver exits before the study is done.
    """
    with contextlib.suppress(KeyboardInterrupt):
        _follow(storage, console, kinds, every or (EVERY if storage.uri is None else EVERY_REMOTE))


def _follow(storage: Storage, console: Console, kinds: StageKinds, every: float) -> None:
    study = _first_snapshot(storage, kinds)
    with _shown(study, console) as show:
        while study.driver is not None:
            time.sleep(every)
            with _out_of_reach_told(console):
                study.update()
                show()
        if not study.complete:
            raise StudyFailedError(f"no driver is running {storage}, and it is not done; `kdstudy run {storage}` "
                                   "continues it")


def _first_snapshot(storage: Storage, kinds: StageKinds) -> Snapshot:
    """Read the state without another download, since the copy is fresh; repeat it if a driver may have just ended.
    """
    study = Snapshot(storage, kinds).update(fetch=False)
    return study if study.driver or study.complete else study.update()


@contextlib.contextmanager
def _out_of_reach_told(console: Console) -> Iterator[None]:
    """Print a note instead of failing when the store is unreachable, since the next update may succeed."""
    try:
        yield
    except UserError as error:
        print_prose(console, f"note: {error}")


@contextlib.contextmanager
def _shown(study: Snapshot, console: Console) -> Iterator[Callable[[], None]]:
    """Yield the function to call after every update."""
    if console.is_terminal:
        with Live(_page(study, console), console=console, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda: live.update(_page(study, console), refresh=True)
        return
    console.print(_page(study, console), soft_wrap=True)
    told = _news(study)

    def tell() -> None:
        for name, line in _changes(study, told):
            console.print(f"{datetime.now():%H:%M:%S} {name.replace('_', ' ')} {line}", soft_wrap=True, markup=False)
        if study.driver is None:
            console.print(_page(study, console), soft_wrap=True)

    yield tell


def _news(study: Snapshot) -> dict[str, tuple]:
    return {stage.name: stage.news() for stage in study.stages}


def _changes(study: Snapshot, told: dict[str, tuple]) -> list[tuple[str, str]]:
    """Return the stages that have changed since `told`, each with its summary, and update `told`."""
    now = _news(study)
    changed = [(stage.name, stage.line()[0].plain) for stage in study.stages if now[stage.name] != told.get(stage.name)]
    told.update(now)
    return changed


def _page(study: Snapshot, console: Console) -> RenderableType:
    """Return the whole status: one line for the study, one per stage, one per failure, then the verdict."""
    name = study.description.get("name", study.storage.folder.name)
    failures = [failure for stage in study.stages for failure in stage.failures()]
    return Group(Text.assemble((name, "bold"), f"  {study.storage}"), Text(_who_and_when(study), style="dim"),
                 *_stage_lines(study, console), *(Text(line, style="red") for line in _some(failures)),
                 *([Text(study.verdict, style="bold")] if study.verdict else []))


def _stage_lines(study: Snapshot, console: Console) -> list[RenderableType]:
    lines = [(stage.name.replace("_", " "), *stage.line()) for stage in study.stages]
    if not console.is_terminal:  # a log has no width: print one line, so that it can be searched
        width = max((len(name) for name, *_ in lines), default=0)
        return [Text.assemble(f"{name:<{width}} ", line, f" {took}".rstrip()) for name, line, took in lines]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, line, took in lines:
        table.add_row(Text(name, style="bold"), line, took)
    return [table] if lines else []


def _who_and_when(study: Snapshot) -> str:
    """Describe which driver is running the study and since when, or when the last one ran."""
    records = study.own
    if not records:
        return f"just started by {study.driver}: reading settings and data" if study.driver and not study.stages \
            else f"driver: {study.driver or 'none'}"
    began, last = min(record.begun for record in records), max(records, key=lambda record: record.last_time)
    if study.driver:
        left = study.seconds_left()
        more = f" · about {clock(left)} left in all" if left is not None else ""
        return f"started {_moment(began)}, {clock(study.now - began)} ago{more} · driver: {study.driver}"
    session = last.session
    by = f" by process {session['pid']} on {session['host']}" if {"pid", "host"} <= session.keys() else ""
    return f"started {_moment(began)} · last worked on {_moment(last.last_time)}{by}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_FAILURES
    return lines if more <= 0 else [*lines[:MOST_FAILURES], f"… and {more} more failed trials"]


def _shown_nodes(trials: list[TrialState]) -> str:
    """Describe the nodes and GPUs that trials run on, where known."""
    nodes: dict[str, list[str]] = {}
    for trial in trials:
        if trial.where:
            host, *rest = trial.where.split()
            nodes.setdefault(host, []).extend(rest[rest.index("gpu") + 1].split(",") if "gpu" in rest else [])
    shown = [f"{host} gpu {','.join(sorted(set(gpus)))}" if gpus else host for host, gpus in sorted(nodes.items())]
    if len(shown) > MOST_NODES:
        return f" on {len(shown)} nodes"
    return f" on {' and '.join(shown)}" if shown else ""


def _first_line(reason: str | None) -> str:
    return next(iter((reason or "").splitlines()), "no reason given")

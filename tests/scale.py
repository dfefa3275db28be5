"""What a search costs at scale, without the hardware that would train its models.

    python tests/scale.py --trials 1000 --reports 10

A trivial trainable, whose accuracy is computed from its parameters and epoch, is run by the project's own searcher,
scheduler and record in the real Tuner. One process runs the search to its end; a second one extends it and is killed
in the middle; a third one goes on. Then everything is timed that reads the record. The table is Markdown.

The controller's time is the processor time of the thread that runs Tune and our part in it; it depends little on what
else the machine does, other times do. With --no-stopping every trial makes all of its reports.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT
from rich.console import Console

from kdstudy.config.load import STUDY_FILE, load_study
from kdstudy.config.settings import StudyConfig
from kdstudy.search.manager import METRIC, TrialManager
from kdstudy.search.optuna_file import write_optuna_file
from kdstudy.search.proposer import OptunaProposer
from kdstudy.search.runs import winner
from kdstudy.store import files as storage
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import TUNE, Storage
from kdstudy.tune.cluster import cluster_share, connected
from kdstudy.tune.tuner import CHECKPOINT_MARK, Job, run_trials
from kdstudy.watch.display import Display, show_bytes

STAGE, MEASURED = "distill", "measured.json"
STAGE_FOLDER = f"{STAGE}-0123456789"  # as if a fingerprint had named it
EXTENSION = 20  # trials by which the finished search is extended
AROUND = 20  # proposals whose mean is the time of one


# ---------------------------------------------------------------------------------------------------------------------
# Trials in no time


class Surface(tune.Trainable):
    """Reports the metrics that a distillation does, so that the record has its size; saved at every fifth report."""

    def setup(self, config: dict) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.parameters, self.number, self.epoch = new_config["parameters"], new_config["number"], 0
        if new_config["checkpoint"]:
            self.load_checkpoint(new_config["checkpoint"])
        return True

    def step(self) -> dict:
        self.epoch += 1
        value = accuracy(self.parameters, self.epoch, self.number)
        losses = dict.fromkeys(("train_loss", "hard_loss", "soft_loss", "validation_loss"), 1 - value)
        return {"epoch": self.epoch, METRIC: value, "agreement": value, "lr": self.parameters["lr"], **losses,
                "images_per_second": 1234.5, "seconds": 0.1 * self.epoch, "failure": None,
                SHOULD_CHECKPOINT: self.epoch % 5 == 0}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / CHECKPOINT_MARK).write_text(json.dumps(self.epoch))

    def load_checkpoint(self, checkpoint: str) -> None:
        self.epoch = json.loads((Path(checkpoint) / CHECKPOINT_MARK).read_text())


def accuracy(parameters: dict[str, float], epoch: int, number: int) -> float:
    """0 to 1, best at lr = 2e-3, alpha = 0.8 and T = 2; a trial's own luck follows from its number."""
    miss = (math.log10(parameters["lr"] / 2e-3) ** 2 + (parameters["alpha"] - 0.8) ** 2
            + math.log2(parameters["temperature"] / 2) ** 2 / 8)
    luck = 0.01 * math.sin(12.9898 * number)
    return round((0.9 * math.exp(-miss / 2) + luck) * (1 - math.exp(-(epoch + 1) / 4)), 4)


# ---------------------------------------------------------------------------------------------------------------------
# A driver, in a process of its own


def book_of(folder: Path, config: StudyConfig, **more: Any) -> TrialManager:
    """The search's manager, as `Study` makes it."""
    proposer = OptunaProposer.of(config, STAGE, config.search.parallel)
    return TrialManager(Record(folder / STAGE_FOLDER / "record.jsonl"), proposer, epochs=config.train.epochs,
                        rungs=config.rungs, parallel=config.search.parallel, **more)


def drive(folder: Path) -> None:
    """Run the study's search, or go on with it. What it took is in MEASURED from the first report on."""
    config = load_study(str(folder))
    measure = Measure(folder / MEASURED)
    with connected(), open(os.devnull, "w", encoding="utf-8") as nowhere:
        share = cluster_share(config.resources)
        display = Display(Console(file=nowhere, force_terminal=True, width=140), (STAGE,))
        manager = book_of(folder, config,
                       on_change=measure.timed("display", lambda: display.trials({STAGE: manager})))
        measure.watch(manager)
        display.begin(STAGE)
        manager.record.begin_session()
        measure.begin()
        run_trials(OneStage([Job(STAGE, "baseline", manager, None)]), Storage(folder), share, worker_retries=0,
                   trainable=Surface)
        measure.end(len(manager.record.trials))
        display.stop()


@dataclass
class OneStage:
    """What there is to run: no stage follows."""

    jobs: list[Job]

    def advance(self) -> None:
        for job in self.jobs:
            job.open = not job.trials.complete

    def is_ended(self) -> bool:
        return not any(job.open for job in self.jobs)

    def interrupted(self) -> None:
        pass

    def occupied(self, trials: int, slots: int) -> None:
        pass


class Measure:
    """Times what a manager does and follows the memory of its process."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = {}
        self.found: dict[str, Any] = {"memory": {}, "asked": {}}

    def watch(self, manager: TrialManager) -> None:
        self._reports = 0
        manager.proposer = _Watched(manager.proposer, self._asked)
        manager.next = self.timed("next", manager.next)
        manager.report = self.timed("report", self._reported(manager.report))
        manager.record._append = self.timed("record", manager.record._append)
        manager.record._append = self.timed("disk", manager.record._append, clock=time.perf_counter)

    def timed(self, name: str, function: Callable, clock: Callable[[], float] = time.thread_time) -> Callable:
        self.seconds[name] = 0.0

        def call(*arguments: Any) -> Any:
            started = clock()
            try:
                return function(*arguments)
            finally:
                self.seconds[name] += clock() - started

        return call

    def _asked(self, number: int, seconds: float) -> None:
        self.found["memory"][number], self.found["asked"][number] = memory(), seconds

    def _reported(self, report: Callable) -> Callable:
        def call(*arguments: Any) -> str:
            decision, self._reports = report(*arguments), self._reports + 1
            if self._reports == 1:
                self.found["first_report"] = time.monotonic()
                self._write()
            return decision

        return call

    def begin(self) -> None:
        self._began = time.monotonic(), time.thread_time()

    def end(self, trials: int) -> None:
        self.found["memory"][trials] = memory()
        wall, controller = (now - then for now, then in zip((time.monotonic(), time.thread_time()), self._began,
                                                            strict=True))
        self.found |= {"wall": wall, "controller": controller, "reports": self._reports, "ours": self.seconds}
        self._write()

    def _write(self) -> None:
        storage.write_json(self.path, self.found)


class _Watched:
    """A proposer that says how long each proposal took."""

    def __init__(self, proposer: OptunaProposer, note: Callable[[int, float], None]):
        self._proposer, self._note, self.protected, self.total = proposer, note, proposer.protected, proposer.total

    def __call__(self, number: int, record: Record) -> TrialState | None:
        started = time.thread_time()
        trial = self._proposer(number, record)
        self._note(number, time.thread_time() - started)
        return trial


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def make_study(folder: Path, trials: int, reports: int, stopping: bool) -> None:
    """A study's folder with nothing but its search."""
    config = load_study("digits", (f"search.trials={trials}", f"train.epochs={reports}", "search.report_every=1",
                                   f"search.early_stopping={str(stopping).lower()}", "name=scale"))
    (folder / STAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / STUDY_FILE, config.to_toml())
    images = dict.fromkeys(("train", "student_train", "validation", "test"), 10000)
    storage.write_json(folder / "stages.json", {
        "name": "scale", "data": {**images, "classes": ["one", "two"], "image_size": 8}, "epochs": reports,
        "rungs": config.rungs, "stages": {STAGE: STAGE_FOLDER}})


def start(folder: Path) -> tuple[subprocess.Popen, float]:
    """A driver, and when it was started."""
    (folder / MEASURED).unlink(missing_ok=True)
    return subprocess.Popen([sys.executable, __file__, "--drive", str(folder)]), time.monotonic()


def run(folder: Path) -> dict[str, Any]:
    """Run the search to its end; what its driver measured, and the seconds until it reported."""
    process, started = start(folder)
    if process.wait() != 0:
        raise SystemExit(f"the driver of {folder} ended with {process.returncode}")
    found = storage.read_json(folder / MEASURED)
    return found | {"until_report": found["first_report"] - started}


def kill_in_the_middle(folder: Path, trials: int) -> float:
    """Go on with the search and kill its driver once there are so many trials. Seconds until it first reported."""
    process, started = start(folder)
    while process.poll() is None and trials_in(folder) < trials:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return storage.read_json(folder / MEASURED)["first_report"] - started


def trials_in(folder: Path) -> int:
    """How many trials have been handed out; it takes no time of the driver's."""
    path = folder / STAGE_FOLDER / "record.jsonl"
    return path.read_bytes().count(b'"event": "trial"') if path.exists() else 0


def seconds(function: Callable, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def close(folder: Path) -> float:
    """Write the search's Optuna file and its done-mark, as a study does. Seconds that the file took."""
    config, record = load_study(str(folder)), Record(folder / STAGE_FOLDER / "record.jsonl", write=False)
    took = seconds(write_optuna_file, config.space(STAGE), record, folder / STAGE_FOLDER / "optuna.db", "scale")
    best = winner(record)
    storage.write_done(folder / STAGE_FOLDER, {
        "outcome": f"{len(record.trials)} trials", "seconds": record.seconds, "trials": len(record.trials),
        "winner": best.number, "parameters": best.parameters, "best_validation": best.metric(METRIC),
        "kind": "none", "family": "none"})
    return took


def readers(folder: Path) -> list[tuple[str, str]]:
    """How long it takes to read a search, the report first as long as it is not closed, and to close it."""
    from kdstudy.analysis import report
    from kdstudy.analysis.sensitivity.findings import analyse
    from kdstudy.analysis.study_files import StudyFiles

    status = [sys.executable, "-m", "kdstudy", "status", str(folder)]
    took = {
        "report while the search runs": seconds(report.build, folder),
        "Optuna file": close(folder),
        "report of the finished search": seconds(report.build, folder),
        "of it sensitivity: fit and read-off": seconds(analyse, StudyFiles(folder)),
        "`kdstudy status`, the command": seconds(lambda: subprocess.run(status, check=True, capture_output=True)),
    }
    size = (folder / "results" / "report.html").stat().st_size
    return [*((name, f"{needed:.1f} s") for name, needed in took.items()), ("report.html", show_bytes(size))]


def rows(folder: Path, trials: int, reports: int, stopping: bool) -> list[tuple[str, str]]:
    """Everything, as rows of the table: what, how much."""
    make_study(folder, trials, reports, stopping)
    found = run(folder)
    path = folder / STAGE_FOLDER / "record.jsonl"
    size, config = path.stat().st_size, load_study(str(folder))
    replay = [seconds(Record, path), seconds(book_of, folder, config)]
    tune_size = sum(file.stat().st_size for file in (folder / TUNE).rglob("*") if file.is_file())
    table = [*of_run(found, trials),
             ("record", f"{show_bytes(size)}, {size / trials:.0f} bytes a trial"),
             ("Tune's own files, removed at the end", show_bytes(tune_size)),
             ("record read, with rungs", f"{replay[0]:.2f} s, {replay[1]:.2f} s"), *readers(folder)]
    make_study(folder, trials + EXTENSION, reports, stopping)
    extended = kill_in_the_middle(folder, trials + EXTENSION // 2)
    resumed = run(folder)["until_report"]
    return [*table, ("process start to first report, search extended", f"{extended:.1f} s"),
            ("process start to first report, after kill -9", f"{resumed:.1f} s")]


def of_run(found: dict[str, Any], trials: int) -> list[tuple[str, str]]:
    """The rows about the search itself."""
    wall, controller, reports, ours = (found[name] for name in ("wall", "controller", "reports", "ours"))
    own = ours["next"] + ours["report"]
    proposals = sum(found["asked"].values())
    marks = [mark for mark in dict.fromkeys((100, 500, trials)) if mark <= trials]
    remembered = {int(number): size for number, size in found["memory"].items()}
    asked = {int(number): took for number, took in found["asked"].items()}

    def asking(mark: int) -> float:
        last = [took for number, took in asked.items() if mark - AROUND <= number < mark]
        return 1000 * sum(last) / len(last)

    return [
        ("trials, reports", f"{trials:,}, {reports:,}"),
        ("wall time", f"{wall:.0f} s: {1000 * wall / trials:.1f} ms a trial, {1000 * wall / reports:.1f} a report"),
        ("controller", f"{1000 * controller / trials:.1f} ms a trial, {1000 * controller / reports:.1f} a report"),
        ("of it ours", f"{1000 * own / trials:.1f} ms a trial: proposals {1000 * proposals / trials:.1f}, record "
                       f"{1000 * ours['record'] / trials:.1f}, display {1000 * ours['display'] / trials:.1f}"),
        ("waiting for the disk", f"{1000 * (ours['disk'] - ours['record']) / trials:.1f} ms a trial"),
        (f"proposal at {', '.join(map(str, marks))} trials", ", ".join(f"{asking(m):.1f}" for m in marks) + " ms"),
        (f"driver's memory at {', '.join(map(str, [0, *marks]))} trials",
         ", ".join(f"{remembered[mark] / 2**20:.0f}" for mark in [0, *marks]) + " MiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=10, help="of a trial that nobody stops")
    parser.add_argument("--no-stopping", action="store_true", help="without ASHA: every trial makes all reports")
    parser.add_argument("--dir", type=Path, help="keep the study there, in a new folder")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive)
        return
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="kdstudy-scale-"))
    print("| what | measured |\n|---|---:|")
    for name, value in rows(folder, arguments.trials, arguments.reports, not arguments.no_stopping):
        print(f"| {name} | {value} |")
    if not arguments.dir:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

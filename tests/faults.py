"""What a study survives, counted on real processes: `python tests/faults.py [--only NAME] [--times N] [--seed S]`.

Each fault is done to a study that runs as a user would run it, from outside: by signals, by removing a node of a Ray
cluster, by damaging files. Afterwards the same command is given again, and the study is compared with one that nobody
disturbed. `lost` counts trials that were on record as finished before the fault and are not, or are otherwise,
afterwards; `duplicates` counts trial numbers, configurations and epochs that are on record twice.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from running import KDSTUDY, kdstudy, results_of, with_set

from kdstudy.store.record import Record, TrialState

# As little as goes through every stage, with trials that are stopped early and checkpoints within a trial.
SETTINGS = [
    "student.model=faulty:build", "student.args={}", "teacher.epochs=4", "train.epochs=12", "search.trials=6",
    "search.baseline_trials=5", "search.protected=2", "search.baseline_protected=1", "search.checkpoint_every=2",
    "search.reduction_factor=2",
]
NAME = "digits-smoke"
CIRCUMSTANCES = ("seconds", "images_per_second", "machine")  # how fast results came, and on how many nodes
WRITTEN_ONCE = ("*.safetensors", "*.npy", "test.parquet")  # of which not a bit may differ


class NotPossibleError(Exception):
    """This machine lacks what a fault needs."""


@dataclass
class Tally:
    """What came of a fault."""

    times: int = 0
    lost: int = 0
    duplicates: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    equal: str = "yes"  # what to say where there are no differences

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicates or self.differences)


class RunningStudy:
    """A study in a folder of its own, and what has been on record as finished so far."""

    def __init__(self, home: Path, *settings: str, folder: Path | None = None, concurrent: int = 2):
        home.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("faulty.py"), home)
        (home / "orders").mkdir()
        self.home, self.folder = home, folder or home / "studies" / NAME
        self.arguments = ["digits", "--smoke", "--dir", str(self.folder),
                          *with_set([*SETTINGS, f"resources.concurrent={concurrent}", *settings])]
        self.lost, self._known, self._helpers = 0, {}, set()

    def order(self, what: str, whom: object = "always") -> None:
        (self.home / "orders" / f"{what}-{whom}").touch()

    def recall(self, what: str, whom: object = "always") -> None:
        (self.home / "orders" / f"{what}-{whom}").unlink(missing_ok=True)

    def start(self, *more: str, **environment: str) -> subprocess.Popen:
        # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen([*KDSTUDY, "run", *self.arguments, *more], cwd=self.home, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment)

    def run(self, *more: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        done = kdstudy("run", *self.arguments, *more, cwd=self.home, check=check, env=os.environ | environment)
        self.look()
        return done

    def look(self) -> None:
        """Count what was finished when last looked at and is not so any more."""
        now = {(stage, number): described(trial) for stage, record in records(self.folder).items()
               for number, trial in record.trials.items() if trial.state != "running"}
        self.lost += sum(now.get(key) != trial for key, trial in self._known.items())
        self._known |= now

    def forget_failed(self) -> None:
        """What failed because its workers died is tried again, so it need not stay as it is."""
        self._known = {key: known for key, known in self._known.items() if "failed" not in known}

    def kill(self, driver: subprocess.Popen) -> float:
        """SIGKILL; returns the seconds until all who compute have ended too. Ray's helpers take longer, idly."""
        below, started = descendants(driver.pid), time.monotonic()
        os.kill(driver.pid, signal.SIGKILL)
        helpers = {pid for pid, line in below.items() if "agent" in line.lower()}  # "Agent" once they are up
        self._helpers |= helpers
        wait_for_end(below.keys() - helpers, 30)
        driver.wait()
        return time.monotonic() - started

    def wait_for_helpers(self) -> None:
        wait_for_end(self._helpers, 120)

    def reports(self, stage: str) -> int:
        return sum(len(trial.reports) for name, record in records(self.folder).items() if name.startswith(f"{stage}-")
                   for trial in record.trials.values())

    def epochs(self, stage: str) -> dict[int, int]:
        """Of the trials that run: the last epoch that each has reported."""
        return {trial.number: trial.epoch for name, record in records(self.folder).items()
                if name.startswith(f"{stage}-") for trial in record.trials.values() if trial.state == "running"}

    def checkpoints(self) -> list[Path]:
        """Of the trials that would go on from one."""
        return [self.folder / trial.checkpoint["path"] for record in records(self.folder).values()
                for trial in record.trials.values() if trial.state == "running" and trial.checkpoint]

    def driver(self) -> int | None:
        """Which process says that it works on the study."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            return int((self.folder / ".lock").read_text().split()[1])
        return None

    def status(self) -> str:
        return kdstudy("status", self.folder, cwd=self.home).stdout

    def current_stage(self) -> str:
        """The stage that is not done, or `start` before there is one and `outputs` after them."""
        begun = [path for path in self.folder.glob("*-*") if path.is_dir()]
        open_ones = sorted(path.name.rsplit("-", 1)[0] for path in begun if not (path / "done.json").exists())
        if not begun:
            return "start"
        return "+".join(open_ones) or ("outputs" if any(self.folder.glob("confirm-*")) else "between")


class Ground:
    """Where faults are tried: a temporary folder with the undisturbed study, and the random moments."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self.random = root, random.Random(seed)
        self._count = 0

    def study(self, *settings: str, **options) -> RunningStudy:
        self._count += 1
        return RunningStudy(self.root / f"study-{self._count}", *settings, **options)

    @cached_property
    def undisturbed(self) -> RunningStudy:
        study = RunningStudy(self.root / "undisturbed")
        started = time.monotonic()
        study.run()
        self.seconds = time.monotonic() - started
        return study

    def close(self, tally: Tally, study: RunningStudy, equal: bool = True) -> None:
        """Count what a study has come to; equal: compare it with the undisturbed one."""
        tally.lost += study.lost
        tally.duplicates += duplicates(study.folder)
        tally.differences += leftovers(study.folder) + still_running(study.folder)
        if equal:
            tally.differences += differences(study.folder, self.undisturbed.folder)
        study.wait_for_helpers()
        status = study.status()
        if "cut off" in status or "not begun" in status:
            tally.differences.append(f"status of a study that is done: {status}")


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


def records(folder: Path) -> dict[str, Record]:
    return {path.parent.name: Record(path, write=False) for path in sorted(folder.glob("*/record.jsonl"))}


def described(trial: TrialState) -> tuple:
    """All of a trial that does not depend on how fast the machine is."""
    reports = [(report["epoch"], report["decision"], timeless(report["metrics"])) for report in trial.reports]
    return trial.parameters, trial.seed, trial.view_seed, trial.state, reports


def timeless(values: dict) -> dict:
    return {name: value for name, value in values.items() if name not in CIRCUMSTANCES}


def duplicates(folder: Path) -> int:
    """How many trial numbers, configurations and epochs of a trial are on record more than once."""
    count = 0
    for path in folder.glob("*/record.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        trials = [event for event in events if event["event"] == "trial"]
        reports = [event for event in events if event["event"] == "report" and event["decision"] != "failed"]
        keys = [event["trial"] for event in trials]
        keys += [json.dumps([event["parameters"], event["seed"], event["view_seed"]]) for event in trials]
        keys += [(event["trial"], event["epoch"]) for event in reports]
        count += sum(times - 1 for times in Counter(keys).values())
    return count


def differences(folder: Path, other: Path) -> list[str]:
    """What of a study is not as in the other, timing apart; weights, logits and predictions to the last bit."""
    found = []
    mine, theirs = records(folder), records(other)
    if mine.keys() != theirs.keys():
        return [f"stages {sorted(mine)} against {sorted(theirs)}"]
    for stage, record in mine.items():
        if record.mismatches:
            found.append(f"{stage}: {record.mismatches} repeated reports came out differently")
        pairs = {number: (record.trials.get(number), theirs[stage].trials.get(number))
                 for number in record.trials.keys() | theirs[stage].trials.keys()}
        found += [f"{stage} trial {number}" for number, pair in sorted(pairs.items())
                  if None in pair or described(pair[0]) != described(pair[1])]
    if timeless(results_of(folder)) != timeless(results_of(other)):
        found.append("results.json")
    for pattern in WRITTEN_ONCE:
        for path in other.rglob(pattern):
            copy = folder / path.relative_to(other)
            if not copy.exists() or copy.read_bytes() != path.read_bytes():
                found.append(str(path.relative_to(other)))
    return found


def still_running(folder: Path) -> list[str]:
    """Trials of the Optuna files that are neither complete, nor pruned, nor failed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = []
    for path in folder.glob("*/optuna.db"):
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
        found += [f"{path.parent.name}: Optuna trial {trial.number} is {trial.state.name}" for trial in study.trials
                  if not trial.state.is_finished()]
    return found


def leftovers(folder: Path) -> list[str]:
    return [f"{path.relative_to(folder)} was left behind" for path in folder.rglob(".*") if path.name != ".lock"]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    earlier = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(earlier)


def unlike_solo(study: RunningStudy, stage: str, numbers: list[int]) -> list[str]:
    """Which of a stage's trials report otherwise than the same run does when it is alone in this process."""

    from kdstudy.config.load import load_study
    from kdstudy.store.storage import Storage
    from kdstudy.study import Study
    from kdstudy.trainables.distill import start_distillation
    from kdstudy.trainables.task import start

    found = []
    with inside(study.home):
        config = load_study(str(study.folder))
        whole = Study(config, Storage.of(study.folder))
        task, record = whole.stages[stage].task(), whole.stages[stage].folder.read_record()
        for number in numbers:
            trial = record.trials[number]
            begin = start_distillation if stage in ("distill", "finalists", "confirm") else start
            training = begin(task, trial.parameters, seed=trial.seed, view_seed=trial.view_seed)
            alone = [training.run(task.report_every) for _ in trial.reports]
            seen = [timeless({"epoch": report["epoch"], **report["metrics"]}) for report in trial.reports]
            if seen != [timeless(report) for report in alone]:
                found.append(f"{stage} trial {number} is not as alone")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def wait_until(driver: subprocess.Popen, condition: Callable[[], object], timeout: float = 300,
               every: float = 0.05) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert driver.poll() is None, "the study ended before the fault: " + "".join(driver.communicate())
        assert time.monotonic() < deadline, "the study did not get that far"
        time.sleep(every)


def ended_within(driver: subprocess.Popen, seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(seconds)
        return True
    return False


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with their command lines."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found, added = {}, {pid}
    while added:
        added = {child for child, parent in parents.items() if parent in added}
        found |= {child: lines[child] for child in added}
    return found


def trial_workers(pid: int) -> list[int]:
    return [child for child, line in descendants(pid).items() if line.startswith("ray::") and "Trainable" in line]


def wait_for_end(pids: Iterable[int], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while alive := [pid for pid in pids if _is_alive(pid)]:
        assert time.monotonic() < deadline, f"Ray's processes {alive} outlive the driver"
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z")
    return False


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, f"not one line:\n{text}"
    return lines[0]


# ---------------------------------------------------------------------------------------------------------------------
# Faults of the driver


def driver_sigkill(ground: Ground, times: int) -> Tally:
    """At random moments from the start to the end, each followed by the same command."""
    return _signalled(ground, times, signal.SIGKILL)


def driver_sigterm(ground: Ground, times: int) -> Tally:
    return _signalled(ground, times, signal.SIGTERM)


def driver_sigint(ground: Ground, times: int) -> Tally:
    return _signalled(ground, times, signal.SIGINT)


def _signalled(ground: Ground, times: int, number: signal.Signals) -> Tally:
    tally, hit, slowest = Tally(), Counter(), 0.0
    whole = ground.undisturbed and ground.seconds
    while tally.times < times:
        study = ground.study()
        while tally.times < times:
            driver = study.start()
            if number != signal.SIGKILL:  # from when on it answers to others
                wait_until(driver, lambda study=study, driver=driver: study.driver() == driver.pid)
            if ended_within(driver, ground.random.uniform(0, 0.7 * whole)):
                assert driver.returncode == 0, driver.communicate()
                break
            stage = study.current_stage()
            seconds = study.kill(driver) if number == signal.SIGKILL else interrupt(driver, number)
            if seconds is None:
                break
            hit[stage] += 1
            slowest, tally.times = max(slowest, seconds), tally.times + 1
            study.look()
            _check_status(study, tally)
        study.run()
        ground.close(tally, study)
    end = "all who compute had ended" if number == signal.SIGKILL else "the command had ended"
    tally.notes.append(f"hit {dict(hit)}; {end} at most {slowest:.1f} s after it")
    return tally


def interrupt(driver: subprocess.Popen, number: signal.Signals) -> float | None:
    """End the driver in order; returns how long that took, in seconds; None where it was just ending by itself."""
    started = time.monotonic()
    driver.send_signal(number)
    printed, errors = driver.communicate(timeout=120)
    seconds = time.monotonic() - started
    if driver.returncode == 0 and seconds < 2:
        return None
    assert driver.returncode == 130, f"exit code {driver.returncode} after {seconds:.1f} s: {printed}{errors}"
    assert "Run the same command again" in one_line(errors)
    return seconds


def _check_status(study: RunningStudy, tally: Tally) -> None:
    """A study that nobody works on is not said to run."""
    if not (study.folder / "stages.json").exists():
        return
    printed = study.status()
    if "running" in printed or "last report" in printed:
        tally.differences.append(f"status of a study that is cut off: {printed}")


def second_driver(ground: Ground, times: int) -> Tally:
    """Refused while the first one lives; the lock of one that was killed is taken over."""
    tally = Tally()
    for _ in range(times):
        study = ground.study()
        study.order("slow")
        first = study.start()
        wait_until(first, lambda study=study: study.reports("baseline") >= 1)
        second = study.run(check=False)
        assert second.returncode == 2, second.stderr
        refusal = one_line(second.stderr)
        assert f"process {first.pid} on {socket.gethostname()}" in refusal, refusal
        assert first.poll() is None
        study.kill(first)
        assert study.driver() == first.pid  # stale, and taken over
        study.recall("slow")
        study.run()
        tally.times += 1
        ground.close(tally, study)
    return tally


# ---------------------------------------------------------------------------------------------------------------------
# Faults of workers and nodes


def worker_sigkill(ground: Ground, times: int) -> Tally:
    """Three times, in trials that may lose one worker each without getting further: all get further in between."""
    tally = Tally()
    for stage in ground.random.sample(["baseline", "distill", "confirm"], 3)[:times]:
        study = ground.study("resources.worker_retries=1")
        study.order("slow")
        driver = study.start()
        reached: dict[int, int] = {}
        for _ in range(3):
            wait_until(driver, lambda study=study, stage=stage, reached=reached: all_further(study, stage, reached))
            reached = study.epochs(stage)
            for pid in trial_workers(driver.pid):
                os.kill(pid, signal.SIGKILL)
        study.recall("slow")
        output, errors = driver.communicate()
        assert driver.returncode == 0, output + errors
        study.look()
        tally.times += 1
        tally.notes.append(f"in {stage}")
        ground.close(tally, study)
    return tally


def all_further(study: RunningStudy, stage: str, reached: dict[int, int]) -> bool:
    """Whether every trial that runs is beyond the epoch that it had reached."""
    now = study.epochs(stage)
    return bool(now) and all(epoch > reached.get(number, 0) for number, epoch in now.items())


def worker_dies_between_trials(ground: Ground, times: int) -> Tally:
    """A worker that has ended one trial and dies before it starts the next: that trial has lost nothing."""
    tally, study = Tally(), ground.study("resources.worker_retries=1")
    study.order("slow")
    driver = study.start()
    for stage in ("baseline", "distill", "confirm")[:times]:
        wait_until(driver, lambda stage=stage: study.reports(stage) > 0)
        study.order("die", "once")
        wait_until(driver, lambda: not (study.home / "orders" / "die-once").exists())
        tally.times += 1
    study.recall("slow")
    output, errors = driver.communicate()
    assert driver.returncode == 0, output + errors
    study.look()
    ground.close(tally, study)
    return tally


def worker_hangs(ground: Ground, times: int) -> Tally:
    """A worker is stopped for ever in the middle of a trial; how long it may be silent is set to seconds."""
    tally, slowest = Tally(), 0.0
    for stage in ("baseline", "distill", "confirm")[:times]:
        study = ground.study("resources.hang_minutes=0.1", "resources.worker_retries=1", concurrent=1)  # one note
        study.order("slow")
        driver = study.start()
        wait_until(driver, lambda study=study, stage=stage: study.reports(stage) >= 2)
        workers = trial_workers(driver.pid)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        wait_until(driver, lambda workers=workers: not any(map(_is_alive, workers)))
        slowest = max(slowest, time.monotonic() - started)
        study.recall("slow")
        output, errors = driver.communicate()
        assert driver.returncode == 0, output + errors
        assert output.count("its worker hangs and was ended") == 1, output
        study.look()
        tally.times += 1
        ground.close(tally, study)
    tally.notes.append(f"ended at most {slowest:.0f} s after they were stopped, with hang_minutes = 0.1")
    return tally


def parallel_worker_hangs(ground: Ground, times: int) -> Tally:
    """One of two workers that train the teacher together is stopped for ever: both begin again from a checkpoint."""
    tally = Tally(equal="not compared")
    for _ in range(times):
        study = ground.study("teacher.epochs=40", "resources.teacher_workers=2", "resources.hang_minutes=0.2")
        driver = study.start("--until", "teacher")
        wait_until(driver, lambda study=study: study.reports("teacher") >= 3)
        stopped = next(pid for pid, line in descendants(driver.pid).items() if line.startswith("ray::RayTrainWorker"))
        os.kill(stopped, signal.SIGSTOP)
        output, errors = driver.communicate(timeout=500)
        assert driver.returncode == 0, output + errors
        assert "note: teacher trial 0: one of its 2 workers failed (" in output, output
        study.look()
        tally.times += 1
        tally.lost, tally.duplicates = tally.lost + study.lost, tally.duplicates + duplicates(study.folder)
        tally.differences += leftovers(study.folder)
        assert not _is_alive(stopped)
    return tally


def retries_spent(ground: Ground, times: int) -> Tally:
    """The default point's workers die until its retries are spent; the same command then tries it again."""
    tally = Tally(equal="each as alone")
    whole = next(record for stage, record in records(ground.undisturbed.folder).items()
                 if stage.startswith("baseline-"))
    for turn in range(times):
        study = ground.study("resources.worker_retries=1")
        study.order("kill", whole.trials[0].seed)
        study.run(*(("--until", "baseline") if turn % 2 else ()))
        _failed_alone(study, tally, {0: "died"})
        if not turn % 2:
            scope = " ".join(results_of(study.folder)["scope"].split())
            assert "The default point of the baseline search failed (" in scope, scope
        decided = {number: described(trial) for number, trial in _of(study, "baseline").trials.items() if number}
        study.forget_failed()
        study.recall("kill", whole.trials[0].seed)
        study.run()
        tally.times += 1
        found = _of(study, "baseline").trials
        assert found[0].state == "complete", found[0]
        assert {number: described(trial) for number, trial in found.items() if number} == decided
        tally.differences += unlike_solo(study, "baseline", [0])
        assert "failed" not in results_of(study.folder)["scope"]
        ground.close(tally, study, equal=False)
    return tally


def _of(study: RunningStudy, name: str) -> Record:
    return next(record for stage, record in records(study.folder).items() if stage.startswith(f"{name}-"))


def logits_worker_sigkill(ground: Ground, times: int) -> Tally:
    """All workers die five times, each time as a piece of the teacher's logits is being saved by one of them: another
    piece may lose its workers again and again before it reports."""
    tally = Tally(equal="the logits, and each as alone")
    for _ in range(times):
        study = ground.study("resources.worker_retries=0")
        driver, killed = study.start("--until", "distill"), [0]

        def is_saved(study=study, killed=killed) -> bool:
            with contextlib.suppress(FileNotFoundError):
                return any(path.stat().st_mtime_ns > killed[-1]
                           for path in (study.folder / ".tune").glob("*/teacher_logits-*/checkpoint_*"))
            return False

        for _ in range(5):
            wait_until(driver, is_saved, every=0.0005)
            for pid in trial_workers(driver.pid):
                os.kill(pid, signal.SIGKILL)
            killed.append(time.time_ns())
            study.look()
        output, errors = driver.communicate()
        assert driver.returncode == 0, output + errors
        study.look()
        tally.times += 5
        logits = next(study.folder.glob("teacher_logits-*"))
        for path in (ground.undisturbed.folder / logits.name).glob("*.[np]*"):  # arrays and predictions
            if path.read_bytes() != (logits / path.name).read_bytes():
                tally.differences.append(f"{logits.name}/{path.name}")
        aside = [event for event in map(json.loads, (logits / "record.jsonl").read_text().splitlines())
                 if event.get("after")]
        tally.notes.append(f"pieces tried again at the end: {'some' if aside else 'none'}")
        tally.lost, tally.duplicates = tally.lost + study.lost, tally.duplicates + duplicates(study.folder)
        tally.differences += leftovers(study.folder) + still_running(study.folder)
        tally.differences += unlike_solo(study, "distill", [0, 1, 2])
    return tally


def ray_sigkill(ground: Ground, times: int) -> Tally:
    """Of the Ray that the command has started: its raylet, and the server that knows the state of all."""
    tally = Tally()
    for turn in range(times):
        study, kind = ground.study(), ("raylet/raylet ", "gcs/gcs_server ")[turn % 2]
        study.order("slow")
        driver = study.start()
        for stage in ("baseline", "distill"):
            wait_until(driver, lambda study=study, stage=stage: study.reports(stage) >= 3)
            killed = [pid for pid, line in descendants(driver.pid).items() if kind in line]
            assert len(killed) == 1, descendants(driver.pid)
            os.kill(killed[0], signal.SIGKILL)
        study.recall("slow")
        output, errors = driver.communicate()
        assert driver.returncode == 0, output + errors
        assert not errors and output.count("It is started again") == 2, output + errors
        study.look()
        tally.times += 2
        ground.close(tally, study)
    return tally


def node_removed(ground: Ground, times: int) -> Tally:
    """Of two nodes with a trial each, one goes and another comes."""
    from ray.cluster_utils import Cluster

    tally = Tally()
    for _ in range(times):
        study = ground.study()
        study.order("slow")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
            driver = study.start("--address", cluster.address)
            wait_until(driver, lambda study=study: study.reports("baseline") >= 3)
            cluster.remove_node(nodes[0], allow_graceful=False)
            time.sleep(3)
            cluster.add_node(num_cpus=1)
            wait_until(driver, lambda study=study: study.reports("distill") >= 3)
            cluster.remove_node(nodes[1], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            study.recall("slow")
            output, errors = driver.communicate()
            assert driver.returncode == 0, output + errors
        finally:
            cluster.shutdown()
        study.look()
        tally.times += 2
        ground.close(tally, study)
    return tally


def out_of_memory(ground: Ground, times: int) -> Tally:
    """Ray's memory monitor kills a worker: once, then for a trial that takes too much whenever it is tried."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    spare = 5 * 2**30  # the study itself takes two
    if get_system_memory() - get_used_memory() < 2 * spare:
        raise NotPossibleError("needs 10 GiB of free memory")
    limit = {"RAY_memory_usage_threshold": f"{(get_used_memory() + spare) / get_system_memory():.4f}",
             "RAY_memory_monitor_refresh_ms": "100"}
    tally = Tally(equal="yes; beside a trial that never fits each as alone")
    for turn in range(times):
        study = ground.study()
        if turn % 2:
            greedy = records(ground.undisturbed.folder)
            trial = next(record for stage, record in greedy.items() if stage.startswith("baseline-")).trials[1]
            study.order("allocate", trial.seed)
            study.run("--until", "baseline", **limit)
            _failed_alone(study, tally, {1: "low on memory"})
        else:
            study.order("allocate", "once")
            study.run(**limit)
            assert not any((study.home / "orders").iterdir())
            ground.close(tally, study)
        tally.times += 1
        resumes = [event["after"] for path in study.folder.glob("*/record.jsonl")
                   for event in map(json.loads, path.read_text().splitlines()) if event.get("after")]
        tally.notes.append(f"resumed {len(resumes)} times after {resumes[0][:60] if resumes else 'nothing'}")
    return tally


# ---------------------------------------------------------------------------------------------------------------------
# Faults of a trial


def bad_trials(ground: Ground, times: int) -> Tally:
    """Three of a search's five: one raises, one has a loss that is no number, one an infinite one."""
    whole = next(record for stage, record in records(ground.undisturbed.folder).items()
                 if stage.startswith("baseline-"))
    orders = {0: ("raise", "RuntimeError: told to"), 1: ("nan", "train_loss is nan"), 2: ("inf", "train_loss is inf")}
    tally = Tally(equal="the others each as alone")
    for _ in range(times):
        study = ground.study()
        for number, (what, _) in orders.items():
            study.order(what, whole.trials[number].seed)  # a trial's seed is that of its number
        study.run("--until", "baseline")
        tally.times += len(orders)
        _failed_alone(study, tally, {number: reason for number, (_, reason) in orders.items()})
    return tally


def _failed_alone(study: RunningStudy, tally: Tally, reasons: dict[int, str]) -> None:
    """These trials of the baseline have failed for the reasons given; the others are what they would be alone."""
    record = next(record for stage, record in records(study.folder).items() if stage.startswith("baseline-"))
    status = study.status()
    for number, reason in reasons.items():
        trial = record.trials[number]
        assert trial.state == "failed" and reason in trial.reason, trial
        if f"baseline trial {number} failed" not in status:
            tally.differences.append("status does not say that a trial has failed")
    others = sorted(record.trials.keys() - reasons.keys())
    assert all(record.trials[other].state in ("complete", "stopped") for other in others)
    tally.lost += study.lost
    tally.duplicates += duplicates(study.folder)
    tally.differences += still_running(study.folder) + unlike_solo(study, "baseline", others)


# ---------------------------------------------------------------------------------------------------------------------
# Faults of files


def truncated_checkpoint(ground: Ground, times: int) -> Tally:
    """Of a trial whose driver is killed, or whose worker is."""
    tally = Tally()
    for turn in range(times):
        study = ground.study()
        study.order("slow")
        driver = study.start()
        wait_until(driver, lambda study=study: study.reports("distill") and study.checkpoints())
        if turn % 2:
            for path in study.checkpoints():
                cut(path / "model.safetensors")
            for pid in trial_workers(driver.pid):
                os.kill(pid, signal.SIGKILL)
            driver.communicate()
        else:
            study.kill(driver)
            for path in study.checkpoints():
                cut(path / "optimizer.safetensors")  # the model's weights are loaded before it
        study.recall("slow")
        study.run()
        tally.times += 1
        ground.close(tally, study)
    return tally


def torn_record(ground: Ground, times: int) -> Tally:
    """A last line that ends within a character, one that is no JSON, and a record without a line."""
    tally = Tally()
    ends = [b'{"sequence": 7, "event": "end", "reason": "\xe2\x80', b"\0\0\xff\n", None]
    for turn in range(times):
        study = ground.study()
        study.order("slow")
        driver, end = study.start(), ends[turn % len(ends)]
        wait_until(driver, lambda study=study, least=4 if end else 1: study.reports("distill") >= least)
        study.kill(driver)
        study.look()
        path = next(study.folder.glob("distill-*/record.jsonl"))
        if end:
            path.write_bytes(path.read_bytes() + end)
        else:
            path.write_bytes(b"")
        study.recall("slow")
        study.run()
        tally.times += 1
        ground.close(tally, study)
    return tally


def torn_logits(ground: Ground, times: int) -> Tally:
    tally = Tally()
    for _ in range(times):
        study = ground.study()
        study.run("--until", "teacher_logits")
        cut(ground.random.choice(sorted(study.folder.glob("teacher_logits-*/views-*.npy"))))
        study.run()
        tally.times += 1
        ground.close(tally, study)
    return tally


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def disk_full(ground: Ground, times: int) -> Tally:
    """Something else fills the disk, a small tmpfs, in the middle of a stage; then there is room again."""
    if os.geteuid():
        raise NotPossibleError("needs root to mount a small file system")
    tally = Tally()
    disk = ground.root / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    try:
        study = ground.study("resources.worker_retries=1", folder=disk / NAME)
        study.order("slow")
        for stage, least in ([("baseline", 2), ("distill", 7), ("confirm", 2)] * times)[:times]:
            driver = study.start()
            wait_until(driver, lambda stage=stage, least=least: study.reports(stage) >= least)
            with filled(disk):
                _, errors = driver.communicate()
            assert driver.returncode == 1, f"exit code {driver.returncode}: {errors}"
            assert "No space left" in one_line(errors), errors
            study.look()
            tally.times += 1
            tally.notes.append(f"in {stage}: {one_line(errors)}")
        study.recall("slow")
        study.run()
        tally.lost += sum(trial.state == "failed" for record in records(study.folder).values()
                          for trial in record.trials.values())
        ground.close(tally, study)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    return tally


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """A file that takes all the room there is."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NotPossibleError(done.stderr.strip())


# ---------------------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[Ground, int], Tally], int]] = {  # and how often the command does each
    "driver SIGKILL": (driver_sigkill, 20),
    "driver SIGTERM": (driver_sigterm, 3),
    "driver SIGINT": (driver_sigint, 3),
    "second driver, stale lock": (second_driver, 1),
    "worker SIGKILL": (worker_sigkill, 3),
    "worker dies between two trials": (worker_dies_between_trials, 3),
    "worker hangs": (worker_hangs, 3),
    "worker of a parallel teacher hangs": (parallel_worker_hangs, 1),
    "workers die until retries are spent": (retries_spent, 2),
    "worker SIGKILL as logits are saved": (logits_worker_sigkill, 1),
    "Ray's raylet, Ray's GCS SIGKILL": (ray_sigkill, 2),
    "node removed, another added": (node_removed, 1),
    "out of memory": (out_of_memory, 2),
    "trials raise, NaN and infinite loss": (bad_trials, 1),
    "truncated checkpoint": (truncated_checkpoint, 2),
    "torn record": (torn_record, 3),
    "torn logits cache": (torn_logits, 1),
    "disk full": (disk_full, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FAULTS, action="append", metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--times", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}\n\n| fault | times | finished trials lost | duplicates | equal to the undisturbed "
          "run | seconds |\n|---|---:|---:|---:|---|---:|", flush=True)
    remarks = []
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        ground = Ground(Path(root), arguments.seed)
        _ = ground.undisturbed
        for name in arguments.only or FAULTS:
            fault, times = FAULTS[name]
            started = time.monotonic()
            try:
                tally = fault(ground, arguments.times or times)
            except NotPossibleError as error:
                print(f"| {name} | 0 | | | {error} | |", flush=True)
                continue
            equal = f"no: {len(tally.differences)} differences" if tally.differences else tally.equal
            print(f"| {name} | {tally.times} | {tally.lost} | {tally.duplicates} | {equal} "
                  f"| {time.monotonic() - started:.0f} |", flush=True)
            remarks += [f"{name}: {text}" for text in (*tally.notes, *tally.differences)]
    print("", *remarks, sep="\n")
    sys.exit(any("differences" in remark for remark in remarks))


if __name__ == "__main__":
    main()

"""On a cluster of unlike nodes every GPU is kept busy and none is over-committed, read from the records of a study."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from nodes import Nodes
from running import KDSTUDY, wait_until, with_set

from kdstudy.analysis.records import read_events, settled
from kdstudy.launch.common import copy_package

SETTINGS = ["resources.gpus_per_trial=0.5", "search.baseline_trials=24", "search.trials=8", "search.report_every=1",
            "train.batch_size=4", "student.model=faulty:build", "student.args={}"]
pytestmark = pytest.mark.slow
ROOM = {"pair": 2, "late": 1}  # trials on each node: the first has more GPUs than CPUs for them


class Run:
    """A trial as its record tells it: where it ran, from its first report to its last."""

    def __init__(self, stage, events):
        self.stage, self.events = stage, events
        self.wheres = [event["where"] for event in events if "where" in event]
        times = [event["time"] for event in events if event["event"] == "report"]
        self.began, self.ended = times[0], times[-1]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study on a head without GPUs and a node with two. In the middle a node with another kdstudy joins, and one with
    a GPU; until all have work and the first worker, which knew nothing of the refusal, has been replaced, trials take
    longer than a worker needs to start: Tune ends one that starts whenever another is free."""
    home = tmp_path_factory.mktemp("placement")
    shutil.copy(Path(__file__).with_name("faulty.py"), home)
    (home / "orders").mkdir()
    (home / "orders" / "slow-always").touch()
    copy_package(home / "older")
    (home / "older" / "kdstudy" / "trainables" / "loop.py").write_text("raise SystemExit('not the same')")

    def events():
        return [event | {"stage": path.parent.name} for path in home.glob("mine/*/record.jsonl")
                for event in settled(read_events(path))]

    def at_work():
        """The trials that have reported and not ended, and on which node each runs."""
        last = {}
        for event in events():
            if event["event"] == "report":
                trial = event["stage"], event["trial"]
                last[trial] = last.get(trial, {}) | event  # a place that is the same as before is not said again
        return {trial: event["where"].split()[1] for trial, event in last.items() if event["decision"] == "continue"}

    def all_at_work():
        found = at_work()
        return len(found) == 3 and len(set(found.values())) == 2 and not any(number == 0 for _, number in found)

    nodes = Nodes(Path(tempfile.mkdtemp(prefix="kd")))
    try:
        nodes.start("head", 1)
        nodes.start("pair", 2, 2)
        command = [*KDSTUDY, "run", "digits", "--smoke", "--dir", "mine", *with_set(SETTINGS)]
        driver = subprocess.Popen(command, cwd=home, env={**os.environ, "RAY_ADDRESS": nodes.address}, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(driver, at_work)
        nodes.start("older", 2, 2, PYTHONPATH=str(home / "older"))
        nodes.start("late", 1, 1)
        wait_until(driver, all_at_work)
        (home / "orders" / "slow-always").unlink()
        output, errors = driver.communicate(timeout=600)
        assert driver.returncode == 0, output + errors
        names = nodes.names()
    finally:
        nodes.stop()
    return home / "mine", output, names


@pytest.fixture(scope="module")
def runs(study):
    found = []
    for path in study[0].glob("*/record.jsonl"):
        by_trial = defaultdict(list)
        for event in map(json.loads, path.read_text().splitlines()):
            if "trial" in event:
                by_trial[event["trial"]].append(event)
        found += [Run(path.parent.name.rsplit("-", 1)[0], events) for events in by_trial.values()]
    return found


def most_at_a_time(runs):
    """Of trials that overlap; one that ends as another begins does not."""
    steps = sorted([(run.began, 1) for run in runs] + [(run.ended, -1) for run in runs])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def test_every_trial_says_on_which_gpu_it_ran_and_none_ran_where_there_is_none(study, runs):
    assert {run.stage for run in runs} == {"teacher", "baseline", "teacher_logits", "distill", "confirm_baseline",
                                           "confirm"}
    for run in runs:
        for where in run.wheres:
            (node,) = re.fullmatch(r"\S+ ([0-9a-f]{8}) gpu \d", where).groups()
            assert study[2][node] in ROOM


def test_no_gpu_and_no_node_takes_more_than_it_has_room_for(study, runs):
    places, nodes = defaultdict(list), defaultdict(list)
    for run in runs:
        (where,) = run.wheres
        places[where].append(run)
        nodes[study[2][where.split()[1]]].append(run)
    assert all(most_at_a_time(on_one) <= 2 for on_one in places.values())  # halves of a GPU
    assert all(most_at_a_time(on_one) <= ROOM[name] for name, on_one in nodes.items())
    assert most_at_a_time(nodes["pair"]) == 2


def test_a_node_that_joins_gets_work_beside_the_others(study, runs):
    late = [run for run in runs if study[2][run.wheres[0].split()[1]] == "late"]
    assert len({run.stage for run in late}) >= 2
    assert most_at_a_time(runs) == 3
    last = [run for run in runs if run.stage.startswith("confirm")]
    assert {study[2][run.wheres[0].split()[1]] for run in last} == set(ROOM)


def test_a_node_with_another_kdstudy_is_named_and_gets_none(study, runs):
    assert "note: node older has a different kdstudy than this machine; " in study[1]
    places = {study[2][where.split()[1]] for run in runs for where in run.wheres}
    assert places == set(ROOM)
    failed = [event for run in runs for event in run.events if event["event"] == "end"]
    assert failed == []


def test_the_distillation_does_not_wait_for_the_last_trials_of_the_baseline(runs):
    ends = {stage: max(run.ended for run in runs if run.stage == stage) for stage in ("teacher", "baseline")}
    begins = {stage: min(run.began for run in runs if run.stage == stage) for stage in ("teacher_logits", "distill")}
    assert ends["teacher"] < begins["teacher_logits"] < begins["distill"] < ends["baseline"]


def test_the_confirmation_runs_both_arms_at_the_same_time(runs):
    confirmed = [run for run in runs if run.stage.startswith("confirm")]
    baseline = [run for run in confirmed if run.stage == "confirm_baseline"]
    distilled = [run for run in confirmed if run.stage == "confirm"]
    assert min(run.began for run in distilled) < max(run.ended for run in baseline)


def test_each_stage_says_how_much_of_the_cluster_was_used(study):
    lines = {line.split("/")[0]: line for line in study[1].splitlines() if "✓" in line}
    shown = [float(share) for number in "123456"
             for share in re.findall(r"(\d+) % of [\d.]+ slots in use", lines[number])]
    assert len(shown) == 6 and all(0 < share <= 100 for share in shown)

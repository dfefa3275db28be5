"""When a worker is taken to hang, and that it is ended once, without Ray."""

import math
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from kdstudy.store.record import Record, TrialState
from kdstudy.tune import watchdog
from kdstudy.tune.watchdog import Usual, Watchdog, Watched, limit

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
NAME = ("baseline", 3)


def usual(first=(), between=()):
    known = Usual()
    known.first.extend(first)
    known.between.extend(between)
    return known


@pytest.mark.parametrize(("known", "watched", "doing", "seconds"), [
    (usual(), Watched(0), {}, DAY),  # a first epoch may be slow, and nobody knows
    (usual(), Watched(0), {"starting": True}, HOUR),
    (usual(), Watched(0, 1), {}, DAY),
    (usual([20]), Watched(0), {}, HOUR),
    (usual([1000, 500, 4000]), Watched(0), {}, 10_000),
    (usual([20], [2, 3, 4]), Watched(0), {}, HOUR),
    (usual([20], [2, 3, 4]), Watched(0, 1), {}, 5 * MINUTE),
    (usual([20], [31, 100, 20]), Watched(0, 1), {}, 310),
    (usual([20], [2, 3, 4]), Watched(0, 5, longest=90), {}, 900),  # a slower trial than the others of its search
    (usual([20], [2, 3, 4]), Watched(0, 5), {"saving": True}, HOUR),
    (usual([20], [2, 3, 4]), Watched(0, 5, longest=1000), {"saving": True}, 10_000),
])
def test_a_worker_hangs_after_ten_times_what_is_usual_and_the_least_that_is_set(known, watched, doing, seconds):
    assert limit(known, watched, 5 * MINUTE, **doing) == pytest.approx(seconds)
    assert limit(known, watched, math.inf, **doing) == math.inf


def test_what_is_usual_is_known_from_the_record_of_an_earlier_driver(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("kdstudy.store.record.time.time", lambda: now[0])
    record = Record(tmp_path / "record.jsonl")
    for number, seconds in enumerate([(30, 4, 6), (10,)]):
        record.add_trial(TrialState(number, {}, 0, 0, "tpe"))
        for epoch, passed in enumerate(seconds, 1):
            now[0] += passed
            record.report(number, epoch, "continue", {"validation_accuracy": 0.5})
    known = Usual.of(Record(tmp_path / "record.jsonl"))
    assert list(known.first) == [30, 10] and list(known.between) == [4, 6]


class Tune:
    """Tune's controller with one trial and its worker, and a watchdog that looks at it as time goes by."""

    def __init__(self, monkeypatch, tmp_path):
        self.time, self.killed, self.notes = 0.0, [], []
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.time)
        monkeypatch.setattr(watchdog.ray, "kill", self.killed.append)
        self.trial = SimpleNamespace(config={"stage": NAME[0], "number": NAME[1]}, status=Trial.RUNNING,
                                     is_saving=False)
        self._actor_to_trial = {"actor": self.trial}
        self._actor_manager = SimpleNamespace(
            _live_actors_to_ray_actors_resources={"actor": ("worker", "resources")},
            _tracked_actors_to_task_futures={"actor": {"train"}}, _tracked_actors_to_state_futures={})
        self.record = Record(tmp_path / "record.jsonl")
        self.watchdog = Watchdog(5, self.notes.append)

    def asked_of_the_worker(self, *futures):
        self._actor_manager._tracked_actors_to_task_futures["actor"] = set(futures)

    def passes(self, seconds, step=1.0):
        for _ in range(round(seconds / step)):
            self.time += step
            self.watchdog.look(self)

    def reports(self, *gaps):
        for seconds in gaps:
            self.passes(seconds)
            self.watchdog.reported(NAME)


@pytest.fixture
def tune(monkeypatch, tmp_path):
    controller = Tune(monkeypatch, tmp_path)
    controller.watchdog.started(NAME, controller.record)
    return controller


def test_a_worker_that_hangs_is_ended_once_and_said_so(tune):
    tune.reports(60, 2, 2, 2)
    tune.passes(299)
    assert not tune.killed
    tune.passes(3)
    assert tune.killed == ["worker"]
    assert tune.watchdog.reason(NAME) == ("its worker hung, without a report for 5:01, and was ended; if it was only "
                                          "slow, set resources.hang_minutes higher")
    assert tune.notes == ["baseline trial 3 has not reported for 5:01: its worker hangs and was ended, and the trial "
                          "goes on from its last checkpoint; if it was only slow, set resources.hang_minutes higher"]
    tune.passes(60)
    assert tune.killed == ["worker"]
    tune.watchdog.started(NAME, tune.record)
    assert tune.watchdog.reason(NAME) is None


def test_a_slow_first_epoch_is_left_alone(tune):
    tune.passes(20 * HOUR, step=5.0)
    tune.reports(2)
    tune.passes(10 * HOUR, step=5.0)  # whatever the second takes
    assert not tune.killed


def test_a_worker_that_waits_for_the_driver_does_not_hang(tune):
    tune.reports(5, 2, 2)
    tune.asked_of_the_worker()
    tune.passes(HOUR)
    tune.asked_of_the_worker("train")
    tune.passes(HOUR - 10)  # as long as it has for a first report
    assert not tune.killed


def test_a_driver_that_was_stopped_itself_does_not_blame_its_workers(tune):
    tune.reports(5, 2, 2)
    tune.time += 8 * HOUR
    tune.passes(250)
    assert not tune.killed


def test_a_checkpoint_may_take_longer_than_epochs(tune):
    tune.reports(5, 2, 2)
    tune.trial.is_saving = True
    tune.passes(HOUR - 10)
    tune.trial.is_saving = False
    tune.watchdog.saved(NAME)
    tune.passes(2 * HOUR)
    assert not tune.killed


def test_a_worker_that_never_begins_is_ended_after_an_hour(tune):
    tune._actor_manager._tracked_actors_to_state_futures["actor"] = {"ready"}
    tune.asked_of_the_worker()
    tune.trial.status = Trial.PENDING
    tune.passes(HOUR)
    assert not tune.killed
    tune.passes(2)
    assert tune.killed == ["worker"]

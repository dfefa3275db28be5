"""The time left, against cases whose answer is known."""

import pytest
from rich.console import Console

from kdstudy.search.manager import TrialManager
from kdstudy.search.runs import ListProposer
from kdstudy.store.record import Record, TrialState
from kdstudy.watch.display import Display
from kdstudy.watch.progress import Pending, seconds_per_run

METRICS = {"validation_accuracy": 0.5}


def trial(begun, *reports):
    return TrialState(0, {}, 0, 0, "listed", begun=begun,
                      reports=[{"time": time, "epoch": epoch, "decision": "continue"} for time, epoch in reports])


def test_the_pace_is_that_between_reports_since_the_first_waits_for_its_worker():
    assert seconds_per_run([trial(0.0, (20, 10), (24, 20), (28, 30)), trial(28.0)], epochs=100) == 40


def test_where_each_reports_once_it_is_the_median_since_they_were_handed_out():
    assert seconds_per_run([trial(0.0, (15, 1)), trial(15.0, (18, 1)), trial(18.0, (20, 1))], epochs=1) == 3


def test_the_night_between_two_drivers_is_nobodys_pace():
    cut_off = trial(0.0, (10, 1), (20, 2), (50_020, 3), (50_030, 4))
    assert seconds_per_run([cut_off], epochs=10, since=50_000) == 100
    assert seconds_per_run([trial(0.0, (50_010, 1)), trial(50_010.0, (50_013, 1))], epochs=1, since=50_000) == 3


def test_nothing_is_known_before_the_first_report():
    assert seconds_per_run([], epochs=5) is None and seconds_per_run([trial(0.0)], epochs=5) is None


@pytest.fixture
def managers(tmp_path, monkeypatch):
    """Two stages of four trials of ten epochs each, one of each running; the clock is set by hand."""
    clock = {"now": 0.0}
    monkeypatch.setattr("kdstudy.store.record.time.time", lambda: clock["now"])
    found = {}
    for stage, seconds in (("baseline", 1.0), ("distill", 3.0)):
        runs = [TrialState(0, {"lr": lr}, 0, 0, "listed", True, "") for lr in (0.1, 0.2, 0.3, 0.4)]
        manager = TrialManager(Record(tmp_path / stage / "record.jsonl"), ListProposer(runs), epochs=10)
        clock["now"] = 0.0
        manager.next()
        for epoch in (2, 4):
            clock["now"] = 50 + epoch * seconds
            manager.report(0, {"epoch": epoch, **METRICS})
        found[stage] = manager
    return found


def test_every_stage_counts_by_its_own_pace_and_as_many_run_on_as_now(managers):
    """Baseline: 36 epochs of 1 s; distillation: 36 of 3 s; two trials at a time."""
    shown = Display(Console(), tuple(managers))._describe(managers)
    assert shown.endswith("0/8 trials · 2 running · best 50.0 % (distill) · about 1:12 left")
    alone = Display(Console(), ("distill",))._describe({"distill": managers["distill"]})
    assert alone.endswith("0/4 trials · 1 running · best 50.0 % · about 1:48 left")


def test_a_slot_that_is_free_for_a_moment_does_not_double_the_time_left(managers, monkeypatch):
    clock = {"now": 100.0}
    monkeypatch.setattr("kdstudy.watch.display.time.monotonic", lambda: clock["now"])
    display = Display(Console(), tuple(managers))
    both = display._seconds_left(managers)
    managers["distill"].running.clear()
    clock["now"] += 50
    assert display._seconds_left(managers) == both
    clock["now"] += 50  # for good
    assert display._seconds_left(managers) == 2 * both


def test_the_time_left_is_that_of_the_whole_study(managers):
    """Beside the two searches: 4 confirmation runs of 10 epochs at the distillation's 3 s an epoch, and a stage paced
    by the baseline with 6 runs of 20 epochs at 1 s times 2, of which 2 are protected and half of the others' epochs are
    run."""
    display = Display(Console(), ("taken over", "baseline", "distill", "confirm", "other", "done"))
    display.end("taken over", "before anything began", 1.0, reused=True)
    display.expect({"taken over": Pending(9, 100, 9, False, {}), "done": Pending(9, 100, 9, False, {}),
                    "baseline": Pending(4, 10, 4, False, {}),
                    "confirm": Pending(4, 10, 4, False, {"nothing": 1.0, "distill": 1.0}),
                    "other": Pending(6, 20, 2, True, {"baseline": 2.0})})
    display.end("done", "as it was", 1.0, reused=True)
    searches = (36 * 1 + 36 * 3) / 2
    confirm, other = 4 * 10 * 3 / 2, (2 + 4 * 0.5) * 20 * 2 / 2
    assert display._seconds_left(managers) == pytest.approx(searches + confirm + other)

"""Searches that decide in virtual time: the same on any number of workers, at any speed, after any crash."""

import heapq
import itertools
import json
import random

import pytest
from test_search import DEFAULT, EPOCHS, METRIC, RUNGS, SPACE, make_manager, proposer, report_of, story

from kdstudy.analysis.records import discarded, read_events, settled, virtual_order
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.search.proposer import OptunaProposer
from kdstudy.search.virtual_time import Decision, VirtualTime
from kdstudy.stages.search import DistillSearch
from kdstudy.store.check import _RecordCheck
from kdstudy.store.record import Record

FAILURES = {(3, 2), (7, 1), (9, 5), (12, 20), (16, 4)}  # trial and epoch
TRIALS = 30


def run(manager, rng, slots=1, spread=0.0, stop_after=None, deaths=0.0):
    """Run trials on some slots, or on a random number of up to -slots. Their speeds differ by a factor of up to
    1 + spread, at every epoch anew; some take ten times as long. deaths: the share of epochs at which a worker dies."""
    live, order, now, reports = [], itertools.count(), 0.0, itertools.count(1)

    def pace(trial):
        return rng.uniform(1, 1 + spread) * (10 if spread and trial.number % 7 == 2 else 1)

    def fill():
        wanted = slots if slots > 0 else rng.randint(1, -slots)
        while len(live) < wanted and (trial := manager.next()) is not None:
            heapq.heappush(live, (now + pace(trial), next(order), trial, (trial.checkpoint or {"epoch": 0})["epoch"]))

    fill()
    while live:
        now, _, trial, epoch = heapq.heappop(live)
        if rng.random() < deaths:
            assert manager.take_back(trial.number, without_progress=True)
            fill()
            continue
        failed = {"failure": "train_loss is nan"} if (trial.number, epoch + 1) in FAILURES else {}
        decision = manager.report(trial.number, report_of(trial, epoch + 1, **failed))
        if decision == "continue":
            if epoch % 4 == 3:
                manager.checkpoint(trial.number, epoch + 1, ".tune/000/trial/checkpoint")
            heapq.heappush(live, (now + pace(trial), next(order), trial, epoch + 1))
        fill()
        if next(reports) == stop_after:
            break
    return manager


def manager_at(path, trials=TRIALS, parallel=4):
    return make_manager(path, proposer=proposer(trials, parallel), parallel=parallel)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A search on one slot: its story, and its record."""
    path = tmp_path_factory.mktemp("undisturbed") / "r.jsonl"
    manager = run(manager_at(path), random.Random(0))
    assert manager.complete and manager.next() is None
    return story(manager.record), path


def test_what_is_searched_has_all_kinds_of_trials(undisturbed):
    states = [trial[2] for trial in undisturbed[0].values()]
    assert len(states) == TRIALS and states.count("failed") >= 3
    assert states.count("stopped") >= 8 and states.count("complete") >= 8


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 8, -3])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_any_number_of_workers_at_any_speed_runs_the_same_trials(tmp_path, undisturbed, slots, spread):
    manager = run(manager_at(tmp_path / "r.jsonl"), random.Random(slots), slots, spread)
    assert manager.complete and story(manager.record) == undisturbed[0]
    assert story(Record(tmp_path / "r.jsonl")) == undisturbed[0]


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_with_any_number_of_workers_it_ends_the_same(tmp_path, undisturbed, seed):
    rng, path = random.Random(seed), tmp_path / "r.jsonl"
    for _ in range(15):
        run(manager_at(path), rng, rng.randint(1, 5), 1.0, stop_after=rng.randint(1, 60), deaths=0.05)
        if rng.random() < 0.5:  # the crash tore the last line
            path.write_bytes(path.read_bytes()[: -rng.randint(2, 40)])
        check_record(path)
    manager = run(manager_at(path), rng, 3, 1.0)
    check_record(path)
    assert manager.complete and manager.record.mismatches == 0
    assert story(manager.record) == story(Record(path)) == undisturbed[0]


def check_record(path):
    """As a study from elsewhere is checked: a failed check raises UserError."""
    _RecordCheck("distill", path, DistillSearch.files, False).check(path.read_bytes())


def test_a_trial_that_was_stopped_meanwhile_is_not_handed_out_and_repeats_nothing(tmp_path):
    """It trained beyond its rung, its driver was killed, and it goes on from an earlier checkpoint."""
    path = tmp_path / "r.jsonl"

    def begin():
        manager = make_manager(path, proposer=OptunaProposer(SPACE, DEFAULT, 4, 0, 0, "distill", 2), parallel=2)
        return manager, [manager.next() for _ in range(2)]

    def report(manager, trial, epoch, value):
        return manager.report(trial.number, {"epoch": epoch, METRIC: value, "validation_loss": 1.0})

    manager, (first, second) = begin()
    assert [report(manager, second, epoch, 0.1) for epoch in (1, 2, 3, 4, 5)] == ["continue"] * 5
    manager, (first, second) = begin()
    assert [report(manager, first, epoch, 0.9) for epoch in (1, 2, 3)] == ["continue"] * 3
    assert second.state == "stopped" and second.epoch == 3 and len(second.discarded) == 2
    assert report(manager, second, 4, 0.1) == "stop"
    check_record(path)

    path = tmp_path / "other.jsonl"
    manager, (first, second) = begin()
    assert [report(manager, second, epoch, 0.1) for epoch in (1, 2, 3)] == ["continue"] * 3
    assert manager.take_back(second.number) and manager.waiting == 1
    assert [report(manager, first, epoch, 0.9) for epoch in (1, 2, 3)] == ["continue"] * 3
    assert manager.waiting == 0 and manager.next().number == 2


def test_a_trial_trains_on_while_its_rung_waits_and_what_it_did_too_much_is_kept_apart(tmp_path, undisturbed):
    path = tmp_path / "r.jsonl"
    trials = run(manager_at(path), random.Random(5), 4, 3.0).record.trials.values()
    beyond = [trial for trial in trials if trial.discarded]
    assert beyond and story(Record(path)) == undisturbed[0]
    for trial in beyond:
        assert trial.state == "stopped" and trial.epoch in RUNGS
        assert [report["epoch"] for report in trial.discarded] == list(
            range(trial.epoch + 1, trial.epoch + 1 + len(trial.discarded)))
    events = read_events(path)
    kept = [(event["trial"], event["epoch"], event["decision"]) for event in virtual_order(settled(events))]
    ideal = virtual_order(settled(read_events(undisturbed[1])))
    assert kept == [(event["trial"], event["epoch"], event["decision"]) for event in ideal]
    assert len(discarded(events)) == sum(len(trial.discarded) for trial in beyond)


def test_an_extended_search_equals_one_that_was_planned_so(tmp_path, undisturbed):
    path = tmp_path / "r.jsonl"
    run(manager_at(path, trials=14), random.Random(1), 3, 1.0)
    assert manager_at(path, trials=14).complete
    assert story(run(manager_at(path), random.Random(2), 2, 1.0).record) == undisturbed[0]


def test_a_search_that_an_earlier_version_began_has_no_virtual_time(tmp_path):
    path = tmp_path / "r.jsonl"
    run(make_manager(path), random.Random(0), stop_after=100)
    assert all(trial.start is None for trial in Record(path).trials.values())
    assert "start" not in path.read_text() and '"decision"' in path.read_text()
    assert not any(json.loads(line)["event"] == "decision" for line in path.read_text().splitlines())


def test_a_failed_trial_that_is_tried_again_changes_no_decision_that_was_made(tmp_path):
    path = tmp_path / "r.jsonl"
    manager = manager_at(path)
    trial = manager.next()
    assert trial.number == 0
    manager.fail(0, "the worker died")
    whole = run(manager, random.Random(0), 2, stop_after=150)
    before = {number: trial for number, trial in story(whole.record).items() if trial[2] != "running"}
    assert 5 < len(before) < TRIALS - 5
    whole.record.retry(0)
    again = run(manager_at(path), random.Random(1), 3)
    assert again.complete and again.record.trials[0].state == "complete" and again.record.trials[0].epoch == EPOCHS
    check_record(path)
    after = story(manager_at(path).record)
    assert after[0][2] == "complete" and before.pop(0)[2] == "failed"
    assert all(after[number] == trial for number, trial in before.items())
    # What is proposed later does not depend on how far the second try has got.
    other = tmp_path / "other.jsonl"
    manager = manager_at(other)
    manager.next()
    manager.fail(0, "the worker died")
    assert run(manager, random.Random(0), 2).complete
    assert {number: trial for number, trial in story(Record(other)).items() if number} == {
        number: trial for number, trial in after.items() if number}


# ---------------------------------------------------------------------------------------------------------------------
# Virtual time by hand: two workers, a rung at epoch 2 of 6, none protected


@pytest.fixture
def by_hand():
    search = VirtualTime(2, 0, [2], 6, 2, lag=1)
    search.begin()
    search.begin()
    return search


def test_a_trial_begins_when_a_virtual_worker_is_free(by_hand):
    assert by_hand.next_start() is None  # two are running
    for epoch in (2, 6):
        by_hand.reach(1, epoch, 0.5)
    # Trial 0 may have had a better accuracy at the rung, and might itself end there.
    assert by_hand.settle() == [] and by_hand.next_start() is None
    by_hand.reach(0, 2, 0.6)
    assert by_hand.settle() == [Decision(0, 2, "continue"), Decision(1, 2, "stop")]
    assert by_hand.next_start() == 2 and by_hand.ended_before_next() == {1}
    by_hand.begin()
    assert by_hand.next_start() is None
    by_hand.reach(2, 2, 0.1)
    assert by_hand.settle() == [Decision(2, 2, "stop")]
    assert by_hand.next_start() == 4 and by_hand.ended_before_next() == {1, 2}  # trial 0 cannot end before 6


def test_what_a_stopped_trial_did_afterwards_enters_no_rung():
    """Whether it trained on, while its rung waited, depends on the speed of others."""
    found = []
    for reports in ("00 01 10 20 21", "10 11 00 01 20 21"):  # trial, rung
        search, made = VirtualTime(6, 0, [1, 2], 4, 2, lag=1), []
        for _ in range(3):
            search.begin()
        for trial, rung in (map(int, pair) for pair in reports.split()):
            search.reach(trial, rung + 1, [[0.9, 0.3], [0.1, 0.99], [0.95, 0.5]][trial][rung])
            made += search.settle()
        found.append({(decision.number, decision.epoch): decision.decision for decision in made})
    assert found[0] == found[1] and found[0][1, 1] == "stop" and found[0][2, 2] == "continue"


def test_ends_at_the_same_time_count_in_the_order_of_the_trials(by_hand):
    for number in (1, 0):
        by_hand.reach(number, 2, 0.5)
        by_hand.settle()
    by_hand.reach(1, 6, 0.5)
    assert by_hand.settle() == [Decision(1, 6, "complete")]
    assert by_hand.next_start() is None  # trial 0 may end at the same time, which comes first
    by_hand.reach(0, 6, 0.5)
    by_hand.settle()
    assert by_hand.next_start() == 6 and by_hand.ended_before_next() == {0}


def test_a_failure_ends_a_trial_at_its_next_decision_point(by_hand):
    by_hand.fail(0)
    assert by_hand.settle() == []
    assert by_hand.next_start() == 2 and by_hand.ended_before_next() == {0}
    by_hand.reach(1, 2, 0.1)  # nobody else has reached the rung
    assert by_hand.settle() == [Decision(1, 2, "continue")]


def test_a_failure_after_a_rung_that_waits_does_not_count_where_the_trial_is_stopped(by_hand):
    by_hand.reach(1, 2, 0.1)
    by_hand.fail(1)
    by_hand.reach(0, 2, 0.9)
    assert Decision(1, 2, "stop") in by_hand.settle()
    assert by_hand.next_start() == 2


def test_a_rung_compares_a_trial_with_those_that_began_some_trials_before():
    search = VirtualTime(4, 0, [2], 6, 2, lag=2)
    for _ in range(4):
        search.begin()
    search.reach(1, 2, 0.9)
    search.reach(3, 2, 0.5)
    # Trial 1 is compared with none, trial 3 with 0 and 1, of which 0 has yet to come.
    assert search.settle() == [Decision(1, 2, "continue")]
    search.reach(0, 2, 0.2)
    # The median of 0.2 and 0.9 is 0.55.
    assert search.settle() == [Decision(0, 2, "continue"), Decision(3, 2, "stop")]


def test_protected_trials_begin_at_once_and_are_never_stopped():
    search = VirtualTime(1, 3, [2], 6, 2)
    for _ in range(3):
        assert search.next_start() == 0
        search.begin()
    assert search.next_start() is None  # the fourth depends on all three
    for number, accuracy in ((0, 0.9), (1, 0.1), (2, 0.1)):
        search.reach(number, 6, accuracy)
    assert [decision.decision for decision in search.settle()] == ["continue"] * 3 + ["complete"] * 3
    assert search.next_start() == 6 and search.ended_before_next() == {0, 1, 2}




# ---------------------------------------------------------------------------------------------------------------------
# Records from elsewhere


def events_of_two(**changes):
    """Two trials of which the second, which is not protected, is stopped at its rung. changes: fields by line number.
    """
    trial = {"event": "trial", "parameters": {"temperature": 4.0, "alpha": 0.5, "lr": 0.001}, "seed": 1, "view_seed": 1,
             "origin": "tpe", "protected": False, "label": "", "start": 0}
    report = {"event": "report", "epoch": 2, "decision": "continue", "reason": None,
              "metrics": {METRIC: 0.5, "validation_loss": 1.0}}
    decision = {"event": "decision", "epoch": 2}
    lines = [{"event": "session", "epochs": 6, "rungs": [2]}, trial | {"trial": 0, "protected": True},
             trial | {"trial": 1}, report | {"trial": 0}, report | {"trial": 1}, report | {"trial": 1, "epoch": 4},
             decision | {"trial": 0, "decision": "continue"}, decision | {"trial": 1, "decision": "stop"}]
    lines += changes.pop("more", [])
    return "".join(json.dumps({"sequence": number, "time": 0.0, **line, **changes.get(f"line{number}", {})}) + "\n"
                   for number, line in enumerate(lines))


def test_the_record_of_two_trials_is_as_it_should_be(tmp_path):
    (tmp_path / "r.jsonl").write_text(events_of_two())
    check_record(tmp_path / "r.jsonl")
    trial = Record(tmp_path / "r.jsonl").trials[1]
    assert (trial.state, trial.epoch, len(trial.discarded)) == ("stopped", 2, 1)


@pytest.mark.parametrize(("changes", "why"), [
    ({"line2": {"start": None}}, "only some trials say when they began"),
    ({"line1": {"start": None}, "line2": {"start": None}}, "trial 0 cannot be decided on so"),
    ({"line6": {"decision": "stop"}}, "trial 0 cannot be decided on so"),
    ({"line7": {"epoch": 4}}, "epoch 4 is not where a trial can stop"),
    ({"line7": {"decision": "complete"}}, "epoch 2 is not where a trial can complete"),
    ({"line7": {"epoch": 6}}, "there is no report of trial 1 at epoch 6"),
    ({"more": [{"event": "decision", "trial": 1, "epoch": 2, "decision": "continue"}]},
     "trial 1 was decided on before, at epoch 2"),
    ({"more": [{"event": "report", "trial": 1, "epoch": 6, "decision": "continue", "reason": None, "metrics": {}}]},
     "trial 1 reports after it was stopped"),
    ({"line7": {"decision": "perhaps"}}, "decision"),
])
def test_decisions_that_cannot_be_are_refused(tmp_path, changes, why):
    (tmp_path / "r.jsonl").write_text(events_of_two(**changes))
    with pytest.raises(UserError, match=why):
        check_record(tmp_path / "r.jsonl")


def test_a_record_whose_trials_began_at_other_times_than_they_could_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    run(manager_at(path), random.Random(0))
    path.write_text(path.read_text().replace('"start": 27', '"start": 26'))
    with pytest.raises(StudyFailedError, match=r"r\.jsonl is damaged: trial \d+ cannot have begun when it says"):
        manager_at(path)

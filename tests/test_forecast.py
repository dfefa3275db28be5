"""What `kdstudy plan` expects, against cases whose answer is known."""

import math
from dataclasses import replace

import pytest

from kdstudy.planning import forecast as forecasts
from kdstudy.planning.forecast import Work
from kdstudy.stages.order import STAGES, priority

NEEDS = {stage.name: stage.needs for stage in STAGES}


def forecast(works, *arguments, **options):
    """As the plan asks for it: each stage with its needs, those first whose trials come first."""
    works = sorted((replace(work, needs=NEEDS[work.name]) for work in works), key=lambda work: priority(work.name))
    return forecasts.forecast(works, *arguments, **options)


def listed(name, runs, epochs, seconds, overhead=0.0):
    return Work(name, runs, runs, epochs, (), seconds, overhead)


@pytest.mark.parametrize(("runs", "slots"), [(10, 1), (10, 3), (3, 8)])
def test_trials_that_are_all_alike_run_in_rounds(runs, slots):
    expected = forecast([listed("baseline", runs, 20, 0.5, overhead=1.0)], slots, 3, start=7.0)
    assert expected.wall == pytest.approx(7 + math.ceil(runs / slots) * (20 * 0.5 + 1))
    assert expected.used == pytest.approx(runs * 11)
    assert expected.times["baseline"] == (7, pytest.approx(expected.wall))
    assert expected.epochs["baseline"] == runs * 20


def test_the_baseline_fills_what_the_teacher_leaves_and_the_distillation_waits_for_the_answers_only():
    """Two slots: the teacher has one for 10 s, then two answers run for 2 s, then trials of 3 s each."""
    expected = forecast([listed("teacher", 1, 10, 1.0), listed("baseline", 6, 3, 1.0),
                         listed("teacher_logits", 2, 2, 1.0), listed("distill", 2, 3, 1.0)], 2, 3)
    assert expected.times["teacher"] == (0, 10)
    # Three baseline trials end at 9 beside the teacher; the fourth has begun when the answers can.
    assert expected.times["teacher_logits"] == (10, 14)
    assert expected.times["baseline"] == (0, 17) and expected.times["distill"] == (15, 20)
    assert expected.wall == pytest.approx(20) and expected.used == pytest.approx(10 + 18 + 4 + 6)


def test_confirmations_wait_for_both_searches_and_run_together():
    expected = forecast([listed("baseline", 2, 5, 1.0), listed("distill", 2, 9, 1.0),
                         listed("confirm_baseline", 2, 5, 1.0), listed("confirm", 2, 5, 1.0)], 4, 3)
    assert expected.times == {"baseline": (0, 5), "distill": (0, 9), "confirm_baseline": (9, 14), "confirm": (9, 14)}


def test_a_stage_with_nothing_to_run_holds_nobody_up():
    expected = forecast([listed("teacher", 0, 0, 0.0), listed("teacher_logits", 0, 0, 0.0),
                         listed("distill", 1, 4, 1.0)], 1, 3)
    assert expected.times["distill"] == (0, 4) and expected.wall == 4


def test_workers_that_train_a_teacher_together_have_everything_to_themselves():
    expected = forecast([Work("teacher", 2, 2, 1, (), 10.0, workers=2), listed("baseline", 3, 4, 1.0)], 3, 3)
    assert expected.times == {"teacher": (0, 20), "baseline": (20, 24)}
    assert expected.used == pytest.approx(2 * 20 + 3 * 4)


def test_a_rung_keeps_one_in_so_many_and_the_protected_go_on():
    """Of very many trials a third passes each rung; at first more do, since nobody is there to compare with."""
    protected, free = 9, 1500
    expected = forecast([Work("distill", protected + free, protected, 30, (4, 12), 1.0, parallel=8)], 8, 3)
    theory = protected * 30 + free * (4 + 8 / 3 + 18 / 9)
    assert theory * 0.97 < expected.epochs["distill"] < theory * 1.1
    alone = forecast([Work("distill", 1, 0, 30, (4, 12), 1.0, parallel=8)], 8, 3)
    assert alone.epochs["distill"] == 30


def test_a_search_runs_no_more_trials_at_a_time_than_it_has_virtual_workers():
    """Its five protected trials depend on no other and run together; then each waits for the end of another."""
    work = Work("baseline", 9, 5, 10, (), 1.0, parallel=2)
    # On many slots: five trials of 10 s; the sixth needs four ends, the others one more each.
    assert forecast([work], 64, 3).wall == 30
    assert forecast([replace(work, parallel=4)], 64, 3).wall == 20
    assert forecast([work], 1, 3).wall == 90


def test_more_slots_take_no_longer():
    works = [listed("teacher", 2, 10, 2.0), Work("baseline", 20, 5, 30, (4, 12), 0.5, 0.2, parallel=4),
             listed("teacher_logits", 15, 1, 2.0), Work("distill", 30, 9, 30, (4, 12), 0.5, 0.2, parallel=4)]
    walls = [forecast(works, slots, 3).wall for slots in (1, 2, 4, 8, 64)]
    assert walls == sorted(walls, reverse=True)
    assert walls[-1] >= 2 * 10 + 2 + 15  # the longest chain: a teacher, an answer, a full distillation

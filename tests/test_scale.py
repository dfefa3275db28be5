"""A search of many trials in the real Tuner, with a trivial trainable; `python tests/scale.py` measures a large one."""

import json

import pytest
import scale

from kdstudy.store.record import Record

TRIALS, REPORTS = 60, 5


@pytest.mark.slow
def test_a_search_that_is_killed_in_the_middle_records_every_trial_once(tmp_path):
    scale.make_study(tmp_path, TRIALS, REPORTS, stopping=True)
    path = tmp_path / scale.STAGE_FOLDER / "record.jsonl"
    scale.kill_in_the_middle(tmp_path, TRIALS // 2)
    killed = {number: trial for number, trial in Record(path, write=False).trials.items() if trial.state != "running"}
    assert 10 < len(killed) < TRIALS

    scale.run(tmp_path)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["sequence"] for event in events] == list(range(len(events)))
    assert [event["trial"] for event in events if event["event"] == "trial"] == list(range(TRIALS))
    record = Record(path, write=False)
    assert all(record.trials[number] == trial for number, trial in killed.items())
    assert record.mismatches == 0 and {trial.state for trial in record.trials.values()} == {"complete", "stopped"}
    for trial in record.trials.values():
        assert [report["epoch"] for report in trial.reports] == list(range(1, trial.epoch + 1))
        assert (trial.epoch == REPORTS) == (trial.state == "complete")

"""What a study survives. The faults themselves are in faults.py; here some are mixed, the others run with --slow."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from faults import (
    FAULTS,
    Ground,
    NotPossibleError,
    RunningStudy,
    Tally,
    bad_trials,
    cut,
    interrupt,
    one_line,
    records,
    timeless,
    trial_workers,
    wait_until,
)

from kdstudy.analysis.study_files import StudyFiles
from kdstudy.trainables.baseline import BaselineTrainable
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Task

# faults.py does each more often; here once, or as often as there are kinds of it that no other test here does.
TIMES = {"truncated checkpoint": 2, "Ray's raylet, Ray's GCS SIGKILL": 2}


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
def test_disturbed_again_and_again_a_study_ends_with_the_same_result(ground):
    """Killed, its last line torn and its checkpoint cut short; stopped; robbed of its workers: nothing is lost."""
    study = ground.study("resources.worker_retries=1")
    study.order("slow")
    driver = study.start()
    wait_until(driver, lambda: study.reports("baseline") >= 10 and study.checkpoints())
    study.kill(driver)
    study.look()
    for path in study.checkpoints():
        cut(path / "optimizer.safetensors")
    record = next(study.folder.glob("baseline-*/record.jsonl"))
    record.write_bytes(record.read_bytes() + b'{"sequence": 7, "reason": "\xe2\x80')

    driver = study.start()
    # The first driver may have begun the teacher's logits already: wait for this one, which cannot be told before.
    wait_until(driver, lambda: study.driver() == driver.pid and any(study.folder.glob("teacher_logits-*")))
    interrupt(driver, signal.SIGTERM)
    assert "last report" not in study.status() and "1 running" not in study.status()

    driver = study.start()
    for _ in range(2):  # one more than a trial that gets no further may lose
        seen = study.reports("distill")
        wait_until(driver, lambda seen=seen: study.reports("distill") > seen)
        for pid in trial_workers(driver.pid):
            os.kill(pid, signal.SIGKILL)
    refused = study.run(check=False)
    assert refused.returncode == 2 and f"process {driver.pid}" in one_line(refused.stderr)
    study.recall("slow")
    assert driver.wait() == 0
    assert_unharmed(ground, study)


def assert_unharmed(ground: Ground, study: RunningStudy) -> None:
    study.look()
    tally = Tally()
    ground.close(tally, study)
    assert tally.clean, tally


@pytest.mark.parametrize(("number", "place", "kept"), [
    (signal.SIGINT, ".", "finished work is kept in ."), (signal.SIGTERM, ".", "finished work is kept in ."),
    (signal.SIGTERM, "nowhere", "nothing had started")])
def test_a_stop_is_not_lost_where_exceptions_are(number, place, kept):
    """Python drops what is raised while an object is deleted, and Ray deletes many."""
    script = f"""
import os, time
from kdstudy.cli import console
from kdstudy import errors

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.01)

try:
    with console.stoppable({place!r}):
        Deleted()
        time.sleep(20)
        print("went on")
except errors.InterruptedStudyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"stopped; {kept}. Run the same command again to continue\n"
    assert done.stderr == ""


@pytest.fixture
def begin(images):
    """Makes a worker with a trial of four epochs, as Tune would."""
    model = ModelSettings(model="vit_tiny_patch16_224", args={
        "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "global_pool": "avg", "class_token": False})
    training = TrainSettings(epochs=4, batch_size=12, precision="fp32")

    class Worker(BaselineTrainable):
        def setup(self, config):
            super().setup(config, Task(images, images, 4, 8, model, training, ViewSettings(shift=1), 1))

    return lambda **parameters: Worker({"parameters": parameters, "seed": 1, "view_seed": 1})


@pytest.mark.parametrize("name", ["training.json", "model.safetensors", "optimizer.safetensors"])
def test_a_worker_that_is_handed_a_damaged_checkpoint_begins_the_trial_anew(begin, tmp_path, name):
    worker = begin(lr=1e-3)
    undisturbed = [timeless(worker.step()) for _ in range(4)]
    worker = begin(lr=1e-3)
    worker.step()
    worker.save_checkpoint(str(tmp_path))
    cut(tmp_path / name)
    worker.restore(str(tmp_path))
    assert [timeless(worker.step()) for _ in range(4)] == undisturbed


def test_a_trial_that_cannot_begin_says_so_whatever_it_is_handed(begin, tmp_path):
    worker = begin(lr=1e-3)
    worker.step()
    worker.save_checkpoint(str(tmp_path))
    impossible = begin(lr=1e-3, optimizer="no such optimizer")
    impossible.restore(str(tmp_path))
    assert "no such optimizer" in impossible.step()["failure"].lower()


@pytest.mark.slow
@pytest.mark.parametrize(("concurrent", "what"), [(1, "nothing"), (2, "load"), (3, "jitter")])
def test_a_study_is_the_same_on_any_number_of_slots_under_any_load(ground, concurrent, what):
    """Alone on one slot, on two with every core busy otherwise, on three with random delays in every step."""
    study = ground.study(concurrent=concurrent)
    if what == "jitter":
        study.order("jitter")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())
            if what == "load"]
    try:
        study.run()
    finally:
        for process in busy:
            process.kill()
    assert_unharmed(ground, study)
    mine, theirs = records(study.folder), records(ground.undisturbed.folder)
    for stage in (name for name in theirs if name.startswith(("baseline-", "distill-"))):
        decided = [[(trial.number, trial.start, trial.decided, trial.state) for trial in record.trials.values()]
                   for record in (mine[stage], theirs[stage])]
        assert decided[0] == decided[1] and all(start is not None for _, start, _, _ in decided[0])


@pytest.mark.slow
def test_trials_that_go_wrong_fail_alone_and_say_why(ground):
    tally = bad_trials(ground, 1)
    assert tally.clean and tally.times == 3, tally


@pytest.mark.slow
def test_a_confirmation_run_that_diverges_counts_as_guesses_and_blocks_nothing(ground):
    """Every row's first seed diverges, also that of the student that would be exported."""
    study = ground.study("confirm.seeds=3")
    seeds = [small_seed(0, "confirm", index) for index in range(3)]
    study.order("nan", seeds[0])
    printed = study.run().stdout
    assert "of them diverged and count as guesses" in " ".join(printed.split())
    results = json.loads((study.folder / "results" / "results.json").read_text())
    rows = [row for row in results["rows"] if row["arm"] != "teacher"]
    assert len(rows) >= 4 and all(row["seeds"] == 3 for row in rows)
    exported = json.loads((study.folder / "export" / "kdstudy.json").read_text())
    done = json.loads(next(study.folder.glob("confirm-*/done.json")).read_text())
    tuned = next(row for row in done["rows"] if row["configuration"] == "tuned")
    assert exported["run"] == tuned["runs"][1]
    first = next(study.folder.glob("confirm-*")) / "runs" / f"{tuned['runs'][0]:03d}"
    guesses = pd.read_parquet(first / "test.parquet")
    assert guesses["prediction"].value_counts().tolist() == [36] * 10  # no class is favoured
    assert all(run["test_accuracy"] < 20 for run in results["failed_runs"]) and len(results["failed_runs"]) == len(
        {(row["stage"], row["runs"][0]) for row in StudyFiles(study.folder).confirmation["rows"]})
    assert "Nothing to do" in study.run().stdout  # it is not tried again


@pytest.mark.slow
def test_where_every_confirmation_run_diverges_the_study_ends_and_there_is_nothing_to_export(ground):
    study = ground.study("confirm.seeds=2")
    for index in range(2):
        study.order("nan", small_seed(0, "confirm", index))
    printed = " ".join(study.run().stdout.split())
    assert "note: nothing to export: the chosen configuration diverged on every confirmation seed" in printed
    assert not (study.folder / "export").exists()
    assert "Nothing to do" in study.run().stdout


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_or_done_twice(ground, name):
    fault, _ = FAULTS[name]
    try:
        tally = fault(ground, TIMES.get(name, 1))
    except NotPossibleError as error:
        pytest.skip(str(error))
    assert tally.clean and tally.times, tally

"""A study that is watched: `kdstudy status`, TensorBoard's event files, MLflow, Weights & Biases."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console
from running import KDSTUDY, ONE_AT_A_TIME, kdstudy, wait_until, with_set
from synthetic import here, is_one_line

from kdstudy.config.load import load_study
from kdstudy.errors import StudyFailedError
from kdstudy.stages.order import stages_of
from kdstudy.store.files import StudyLock, write_json, write_text
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.watch import status
from kdstudy.watch.trackers import feed as watch

HAS_MLFLOW, HAS_WANDB = (importlib.util.find_spec(name) is not None for name in ("mlflow", "wandb"))
CHILD = "import sys; from kdstudy.cli.main import main; sys.argv = ['kdstudy', *sys.argv[1:]]; main()"
POINT = {"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}


# -- a study that runs, as its files would be -------------------------------------------------------------------------


def begin(folder, *settings):
    """A study of which the settings have been written; digits, 60 trials of 30 epochs, 100 images of the student's."""
    config = load_study("digits", ("search.trials=60", "train.epochs=30", "finalists.configurations=0", *settings))
    write_text(folder / "study.toml", config.to_toml())
    write_json(folder / "stages.json", {
        "name": "digits", "epochs": 30, "rungs": [4, 12], "stages": {},
        "data": {"train": 1000, "student_train": 100, "validation": 50, "test": 50, "classes": ["a", "b"],
                 "image_size": 8}})
    return folder


def add_stage(folder, stage, events, ended=None):
    """Write a stage's record; each event is (seconds after the first, what happened)."""
    path = folder / f"{stage}-0123456789"
    path.mkdir(exist_ok=True)
    begun = (time.time() if ended is None else ended) - max(seconds for seconds, _ in events)
    lines = [json.dumps({"sequence": number, "time": begun + seconds, **event})
             for number, (seconds, event) in enumerate(events)]
    (path / "record.jsonl").write_text("".join(f"{line}\n" for line in lines))
    described = json.loads((folder / "stages.json").read_text())
    write_json(folder / "stages.json", described | {"stages": described["stages"] | {stage: path.name}})
    return path


def session(**facts):
    return {"event": "session", "host": "driver-host", "pid": 7, "epochs": 30, "rungs": [4, 12], "wanted": 60,
            "protected": 8, **facts}


def handed_out(number, **parameters):
    return {"event": "trial", "trial": number, "parameters": POINT | parameters, "seed": number, "view_seed": 1,
            "origin": "tpe", "protected": False, "label": ""}


def report(number, epoch, accuracy, decision="continue", reason=None, **more):
    return {"event": "report", "trial": number, "epoch": epoch, "decision": decision, "reason": reason,
            "metrics": {"validation_accuracy": accuracy, "validation_loss": 1.0, "lr": 1e-3}, **more}


# One trial completes every 60 seconds with a report every 6 seconds; then one fails, two run on two GPUs of a node.
BUSY = [(0, session()), *[event for number in range(10) for event in (
    (60 * number, handed_out(number, lr=1e-3 * (number + 1))),
    *((60 * number + 6 * step, report(number, 3 * step, 0.3 + 0.02 * number + 0.01 * step,
                                      "complete" if step == 10 else "continue")) for step in range(1, 11)))],
        (600, handed_out(10)), (600, handed_out(11)), (600, handed_out(12)),
        (603, report(10, 1, None, "failed", "RuntimeError: out of luck\nand a stack")),
        (606, report(11, 3, 0.2, where="node-a 1a2b3c4d gpu 0")),
        (606, report(12, 3, 0.2, where="node-a 1a2b3c4d gpu 1"))]


def status_of(folder):
    code, out, err = here("status", str(folder))
    assert code == 0 and not err, (code, out, err)
    return out


def test_status_of_a_running_study_says_all_that_one_wants_to_know(tmp_path):
    add_stage(begin(tmp_path), "distill", BUSY)
    with StudyLock(tmp_path):
        out = status_of(tmp_path)
    line = next(line for line in out.splitlines() if line.startswith("distill"))
    for text in ("11 of 60 trials", "2 running on node-a gpu 0,1", "1 failed", "best 58.0 % (T=4, alpha=0.5, lr=0.01)",
                 "last report 0:0"):
        assert text in line, (text, line)
    assert f"driver: process {os.getpid()} on" in out and "10:06 ago" in out.replace("10:07", "10:06")
    assert "distill trial 10 failed: RuntimeError: out of luck\n" in out and "and a stack" not in out
    assert out.count("not begun") == 5


def test_its_pace_and_the_time_left_are_those_of_the_last_ten_minutes(tmp_path):
    """From the report at 6 to that at 606 seconds: 10 trials ended and one failed, and 297 + 6 epochs of 100 images.
    47 trials are to come and two have 27 epochs to go, and what ended ran 30 epochs but for the one that failed."""
    add_stage(begin(tmp_path), "distill", BUSY)
    with StudyLock(tmp_path):
        out = status_of(tmp_path)
    trials, images = re.search(r"([\d.,]+) trials/h, ([\d.,]+) images/s", out).groups()
    assert float(trials) == pytest.approx(11 * 6, abs=0.5)
    assert float(images) == pytest.approx((297 + 1 + 6) * 100 / 600, abs=1)
    typical = (10 * 30 + 1) / 11
    left = (47 * typical + 2 * (typical - 3)) / (304 / 600)
    minutes, seconds = map(int, re.search(r"about (\d+):(\d+) left", out).groups())
    assert 60 * minutes + seconds == pytest.approx(left, rel=0.01)


def test_trials_that_an_earlier_driver_left_are_to_go_on_until_they_are_heard_of(tmp_path):
    events = [(0, session()), *((0, handed_out(number)) for number in range(3)), (5, report(0, 3, 0.4)),
              (5, report(1, 3, 0.4)), (100, session()), (109, report(0, 6, 0.5)), (110, handed_out(3))]
    add_stage(begin(tmp_path), "distill", events)
    with StudyLock(tmp_path):
        assert "0 of 60 trials · 2 running · 2 to continue" in status_of(tmp_path)
    out = status_of(tmp_path)
    assert "cut off · 0 of 60 trials · 4 unfinished" in out and "continues it" in out
    assert "by process 7 on driver-host" in out and "left" not in out


@pytest.mark.parametrize(("stage", "origin", "wanted"), [("baseline", "tpe", 20), ("teacher", "teacher", 1)])
def test_how_many_trials_there_will_be_is_known_from_older_records_too(tmp_path, stage, origin, wanted):
    trial = handed_out(0) | {"parameters": {"lr": 1e-3}, "origin": origin}
    older = [(0, {"event": "session", "host": "h", "pid": 1}), (1, trial), (2, report(0, 3, 0.5))]
    add_stage(begin(tmp_path), stage, older)
    with StudyLock(tmp_path):
        assert f"0 of {wanted} trials" in status_of(tmp_path)


def test_of_many_failures_the_first_are_told_and_the_others_counted(tmp_path):
    failed = [event for number in range(25) for event in (
        (number, handed_out(number)), (number, report(number, 1, None, "failed", f"reason {number}.")))]
    add_stage(begin(tmp_path), "distill", [(0, session()), *failed])
    out = status_of(tmp_path)
    assert "reason 9." in out and "reason 10." not in out and "… and 15 more failed trials" in out


def test_status_of_a_study_that_is_done_and_of_one_that_begins(synthetic_study, tmp_path):
    out = status_of(synthetic_study)
    assert out.count("✓") == 6 and "cut off" not in out and "last worked on" in out
    with StudyLock(tmp_path):  # its driver is still reading the images
        assert f"just started by process {os.getpid()}" in status_of(tmp_path)
        write_text(tmp_path / "study.toml", load_study("digits").to_toml())
        assert f"just started by process {os.getpid()}" in status_of(tmp_path)
    code, _, err = here("status", str(tmp_path))
    assert code == 2 and is_one_line(err) and "stages.json is missing" in err


def test_status_needs_neither_torch_nor_ray(tmp_path):
    add_stage(begin(tmp_path), "distill", BUSY)
    script = CHILD.replace("main()", "import atexit; atexit.register(lambda: print([name for name in ('torch', 'ray', "
                           "'optuna', 'pandas', 'scipy') if name in sys.modules])); main()")
    done = subprocess.run([sys.executable, "-c", script, "status", str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]" and "of 60 trials" in done.stdout, done.stderr


# -- --follow ---------------------------------------------------------------------------------------------------------


def follow(folder, *words):
    return subprocess.Popen([*KDSTUDY, "status", str(folder), "--follow", "--every", "0.5", *words], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def append(folder, *events):
    record = Record(next(folder.glob("distill-*")) / "record.jsonl", write=False)
    with open(record.path, "a") as file:
        for number, event in enumerate(events):
            file.write(json.dumps({"sequence": record._sequence + number, "time": time.time(), **event}) + "\n")


def test_in_a_log_a_line_is_printed_when_something_changes_and_the_end_is_the_drivers(tmp_path):
    stage = add_stage(begin(tmp_path), "distill", BUSY)
    with StudyLock(tmp_path):
        process = follow(tmp_path)
        seen = [process.stdout.readline() for _ in range(9)]  # where it stands: 2 lines, 6 stages, a failure
        time.sleep(1.5)
        append(tmp_path, report(11, 30, 0.7, "complete"))
        seen.append(process.stdout.readline())
        time.sleep(1.5)
        for name in ("teacher", "baseline", "teacher_logits", "confirm_baseline", "confirm"):
            write_json(tmp_path / f"{name}-0123456789" / "done.json", {"outcome": "made up", "seconds": 1.0})
            add_stage(tmp_path, name, [(0, session())])
        # The done-mark first: between the two, a report alone would be one more change to print.
        write_json(stage / "done.json", {"outcome": "12 trials", "seconds": 1.0})
        append(tmp_path, report(12, 30, 0.6, "complete"))
        time.sleep(1.5)
    rest, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not err
    assert re.match(r"\d\d:\d\d:\d\d distill … 12 of 60 trials", seen[-1]) and "best 70.0 %" in seen[-1]
    changes = [line for line in rest.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(changes) == 6 and all("✓" in line for line in changes)  # nothing was said while nothing changed


def test_following_ends_with_a_line_where_the_driver_has_gone(tmp_path):
    add_stage(begin(tmp_path), "distill", BUSY)
    with StudyLock(tmp_path):
        process = follow(tmp_path)
        process.stdout.readline()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and is_one_line(err) and "no driver is running" in err and "cut off" in out


def test_ctrl_c_ends_following_without_a_word(tmp_path):
    add_stage(begin(tmp_path), "distill", BUSY)
    with StudyLock(tmp_path):
        process = follow(tmp_path)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not err


def test_on_a_terminal_it_is_drawn_anew_in_its_place(tmp_path):
    add_stage(begin(tmp_path), "distill", BUSY)
    screen = io.StringIO()
    with StudyLock(tmp_path):
        thread = threading.Thread(target=follow_here, args=(tmp_path, screen))
        thread.start()
        time.sleep(1.0)
        append(tmp_path, report(11, 30, 0.7, "complete"))
        time.sleep(1.5)
    thread.join(30)
    assert not thread.is_alive()
    first, *others = screen.getvalue().split("\x1b[1A")  # one line up
    assert "11 of 60 trials" in first and any("12 of 60 trials" in part for part in others)


def follow_here(folder, screen):
    console = Console(file=screen, force_terminal=True, width=200, highlight=False)
    with contextlib.suppress(StudyFailedError):
        status.follow_status(Storage(folder), console, stages_of, 0.5)


def test_every_is_a_number_that_follow_takes(tmp_path):
    for words, said in ((("--every", "3"), "--every needs --follow"), (("--follow", "--every", "nan"), "not a number")):
        code, _, err = here("status", str(tmp_path), *words)
        assert code == 2 and is_one_line(err) and said in err


# -- [watch] ----------------------------------------------------------------------------------------------------------


def test_what_is_watched_changes_no_stage(synthetic_study, tmp_path):
    """Every fingerprint is as it was, so switching it on makes nothing run again."""
    folder = shutil.copytree(synthetic_study, tmp_path / "study")
    described = json.loads((folder / "stages.json").read_text())["stages"]
    found = []
    for settings in ((), ("watch.tensorboard=true", "watch.mlflow=x", "watch.wandb=y")):
        config = load_study(str(folder), settings)
        study = Study(config, Storage(folder))
        found.append({name: (study.stages[name].folder.path.name, study.stages[name].is_current())
                      for name in described})
    assert found[0] == found[1] and {name: folder for name, (folder, _) in found[1].items()} == described
    assert found[1]["teacher"][1] and found[1]["distill"][1]


@pytest.mark.parametrize(("setting", "said"), [
    ("watch.tensorboard=3", "watch.tensorboard = 3: must be true or false"),
    ("watch.mlflow=true", "watch.mlflow = True: must be a string"),
    ("watch.wandb=[1]", "watch.wandb = [1]: must be a string"),
    ("watch.wanb=x", "watch.wanb is not a setting of [watch]; did you mean watch.wandb?"),
])
def test_a_wrong_value_is_one_line(setting, said):
    code, _, err = here("plan", "digits", "--set", setting)
    assert code == 2 and is_one_line(err) and said in err


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("name", "there"), [("mlflow", HAS_MLFLOW), ("wandb", HAS_WANDB)])
def test_a_package_that_is_missing_is_named_before_anything_starts(name, there, command, tmp_path, monkeypatch):
    if there:
        pytest.skip(f"{name} is installed")
    monkeypatch.chdir(tmp_path)
    code, out, err = here(command, "digits", "--set", f"watch.{name}=x")
    assert code == 2 and is_one_line(err) and f"pip install 'kdstudy[{name}]'" in err and "✓" not in out
    assert not list(tmp_path.glob("studies/*/study.toml"))


def a_study(folder):
    """A study of two trials, of which one runs; and its record."""
    home = Storage(begin(folder))
    stage = folder / "distill-0123456789"
    record = Record(stage / "record.jsonl")
    record.begin_session()
    described = json.loads((folder / "stages.json").read_text())
    write_json(folder / "stages.json", described | {"stages": {"distill": stage.name}})
    for number in range(2):
        record.add_trial(TrialState(number, POINT | {"lr": 1e-3 * (number + 1)}, number, 1, "sobol"))
    for epoch in (2, 4, 6):
        add_report(record, 0, epoch, "complete" if epoch == 6 else "continue")
    add_report(record, 1, 2)
    return home, record


def add_report(record, number, epoch, decision="continue"):
    record.report(number, epoch, decision, {"validation_accuracy": 0.1 * epoch + 0.01 * number, "train_loss": 1 / epoch,
                                            "soft_loss": None, "lr": 1e-3})


def watching(home, *settings):
    notes = []
    return watch.watched(load_study(str(home.folder), settings), home, ("teacher", "baseline", "distill"),
                         notes.append), notes


def expected_of(record):
    """Per trial, per metric: (epoch, value) of its reports."""
    return {number: {name: [(one["epoch"], one["metrics"][name]) for one in trial.reports
                            if one["metrics"].get(name) is not None]
                     for name in {name for one in trial.reports for name, value in one["metrics"].items()
                                  if value is not None}} for number, trial in record.trials.items()}


# -- TensorBoard


def read_events(path):
    """The events of a file: as TensorFlow's TFRecords are defined, with their checksums; nothing may be left over."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, at, events = path.read_bytes(), 0, []
    while at < len(content):
        (length,), (checksum,) = struct.unpack("<Q", content[at: at + 8]), struct.unpack("<I", content[at + 8: at + 12])
        assert checksum == masked_crc32c(content[at: at + 8])
        message = content[at + 12: at + 12 + length]
        assert struct.unpack("<I", content[at + 12 + length: at + 16 + length])[0] == masked_crc32c(message)
        events.append(Event.FromString(message))
        at += 16 + length
    return events


def scalars(events):
    found = {}
    for event in events:
        for value in event.summary.value:
            if not value.HasField("metadata"):
                found.setdefault(value.tag, []).append((event.step, pytest.approx(value.simple_value)))
    return found


def event_files(folder, stage="distill"):
    """The one file of each trial, by number."""
    found = {}
    for path in (folder / "tensorboard" / stage).glob("trial-*/*"):
        number = int(path.parent.name.removeprefix("trial-"))
        assert "tfevents" in path.name and number not in found
        found[number] = path
    return found


def written(folder, stage="distill"):
    return {number: scalars(read_events(path)) for number, path in event_files(folder, stage).items()}


def hyperparameters(events):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    parts = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for event in events
             for value in event.summary.value if value.metadata.plugin_data.plugin_name == "hparams"]
    experiment, = (part.experiment for part in parts if part.HasField("experiment"))
    start, = (part.session_start_info for part in parts if part.HasField("session_start_info"))
    return ({info.name for info in experiment.hparam_infos}, {info.name.tag for info in experiment.metric_infos},
            {name: value.number_value or value.string_value for name, value in start.hparams.items()})


def test_event_files_hold_what_the_record_holds_and_are_gone_on_with(tmp_path):
    """By a second driver, after one that was killed while it wrote; a third one has nothing to write."""
    home, record = a_study(tmp_path)
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    assert written(tmp_path) == expected_of(record)
    path = event_files(tmp_path)[1]
    intact = path.read_bytes()
    path.write_bytes(intact + intact[-40:-7])  # half an event
    add_report(record, 1, 4)
    with watching(home, "watch.tensorboard=true")[0]:
        add_report(record, 1, 6, "complete")
    assert written(tmp_path) == expected_of(record) and path.read_bytes().startswith(intact)
    events = read_events(path)
    assert events[0].file_version and [event.wall_time for event in events[3:]] == pytest.approx(
        [report["time"] for report in record.trials[1].reports])
    names, metrics, own = hyperparameters(events)
    assert {"temperature", "alpha", "lr", "stage", "trial", "seed"} <= names and metrics == {"validation_accuracy"}
    assert own["temperature"] == 4 and own["lr"] == 2e-3 and own["stage"] == "distill"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in event_files(tmp_path).values()}
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in event_files(tmp_path).values()}


def test_a_trial_that_is_tried_again_has_no_point_of_its_failure(tmp_path):
    home, record = a_study(tmp_path)
    record.report(1, 4, "failed", {"train_loss": float("nan")}, "train_loss is nan")
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    record.retry(1)
    for epoch in (4, 6):
        add_report(record, 1, epoch)
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    assert written(tmp_path) == expected_of(record)


def test_with_other_settings_the_curves_of_the_old_ones_go(tmp_path):
    home, _ = a_study(tmp_path)
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    stage = tmp_path / "distill-aaaaaaaaaa"
    record = Record(stage / "record.jsonl")
    record.add_trial(TrialState(0, POINT, 0, 1, "default"))
    add_report(record, 0, 2)
    described = json.loads((tmp_path / "stages.json").read_text())
    write_json(tmp_path / "stages.json", described | {"stages": {"distill": stage.name}})
    with watching(home, "watch.tensorboard=true")[0]:
        pass
    assert written(tmp_path) == expected_of(record)


def test_what_a_trial_does_beyond_a_rung_that_may_still_stop_it_is_not_shown(tmp_path):
    """Trial 2 is at epoch 6 while its rung at 2 waits for another trial; then it is stopped there. Trial 3 is not."""
    home, record = a_study(tmp_path)
    record.begin_session(rungs=[2, 4])
    for number in (2, 3):
        record.add_trial(TrialState(number, POINT, number, 1, "tpe", start=0))
        for epoch in (1, 2, 3, 6):
            add_report(record, number, epoch)
    context, _ = watching(home, "watch.tensorboard=true")
    with context:
        pass
    assert [epochs_of(written(tmp_path), number) for number in (2, 3)] == [[1, 2], [1, 2]]
    record.decide(2, 2, "stop")
    record.decide(3, 2, "continue")
    context, _ = watching(home, "watch.tensorboard=true")
    with context:
        record.decide(3, 4, "continue")
    assert [epochs_of(written(tmp_path), number) for number in (2, 3)] == [[1, 2], [1, 2, 3, 6]]


def epochs_of(found, number):
    return [epoch for epoch, _ in found[number]["validation_accuracy"]]


def test_what_cannot_be_written_is_a_note_and_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.05)
    monkeypatch.setattr(watch, "TRY_AGAIN", 0.2)
    home, record = a_study(tmp_path)
    (tmp_path / "tensorboard").write_text("in the way")
    context, notes = watching(home, "watch.tensorboard=true")
    with context:
        time.sleep(0.6)
        assert len(notes) == 1 and notes[0].startswith("watch.tensorboard: ") and "the study goes on" in notes[0]
        (tmp_path / "tensorboard").unlink()
    assert len(notes) == 1 and written(tmp_path) == expected_of(record)


@pytest.mark.slow
def test_a_killed_and_resumed_study_has_each_point_once(tmp_path):
    """A whole command line: killed with SIGKILL in the middle of a search, and gone on with."""
    settings = ["watch.tensorboard=true", "search.baseline_trials=3", "search.baseline_protected=1"]
    run = ["run", *ONE_AT_A_TIME, "--until", "baseline", *with_set(settings)]
    first = subprocess.Popen([*KDSTUDY, *run], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "studies" / "digits-smoke"
    wait_until(first, lambda: list(folder.glob("tensorboard/baseline/trial-001/*")))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = event_files(folder, "baseline")[0].read_bytes()
    printed = kdstudy(*run, cwd=tmp_path).stdout
    assert "note:" not in printed and event_files(folder, "baseline")[0].read_bytes() == kept
    for stage in ("teacher", "baseline"):
        record = Record(next(folder.glob(f"{stage}-*")) / "record.jsonl", write=False)
        assert written(folder, stage) == expected_of(record) and len(record.trials) == {"teacher": 1}.get(stage, 3)
    assert not (folder / "tensorboard" / "teacher_logits").exists()


# -- MLflow


def mlflow_runs(uri, experiment):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    found = {}
    for run in runs:
        assert run.info.run_name not in found
        history = {name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                   for name in run.data.metrics}
        found[run.info.run_name] = (run, history)
    return found


@pytest.mark.skipif(not HAS_MLFLOW, reason="mlflow is not installed: pip install 'kdstudy[mlflow]'")
@pytest.mark.parametrize("where", ["a folder", "a file store"])
def test_mlflow_gets_a_run_per_trial_which_a_second_driver_goes_on_with(tmp_path, monkeypatch, where):
    setting, uri = str(tmp_path / "kept"), f"sqlite:///{tmp_path / 'kept' / 'mlflow.db'}"
    if where == "a file store":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        setting = uri = f"file://{tmp_path / 'kept'}"
    home, record = a_study(tmp_path / "study")
    context, notes = watching(home, f"watch.mlflow={setting}")
    with context:
        pass
    add_report(record, 1, 4)
    context, more_notes = watching(home, f"watch.mlflow={setting}")
    with context:
        add_report(record, 1, 6, "complete")
    assert not notes + more_notes
    runs = mlflow_runs(uri, "digits")
    assert set(runs) == {"distill-0123456789/000", "distill-0123456789/001"}
    for number, expected in expected_of(record).items():
        run, history = runs[f"distill-0123456789/{number:03d}"]
        assert {name: points for name, points in history.items() if name != "epoch"} == {
            name: [(epoch, pytest.approx(value)) for epoch, value in points] for name, points in expected.items()}
        assert run.info.status == "FINISHED"
        assert run.data.params == {"stage": "distill", "trial": str(number), "seed": str(number), "origin": "sobol",
                                   "temperature": "4.0", "alpha": "0.5", "lr": str(1e-3 * (number + 1))}


@pytest.mark.skipif(not HAS_MLFLOW, reason="mlflow is not installed: pip install 'kdstudy[mlflow]'")
def test_what_mlflow_missed_while_it_was_away_it_is_told_later(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.1)
    monkeypatch.setattr(watch, "TRY_AGAIN", 0.5)
    home, _ = a_study(tmp_path / "study")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = f"file://{tmp_path / 'kept'}"
    context, notes = watching(home, f"watch.mlflow={uri}")
    with context:
        for _ in range(100):
            if notes:
                break
            time.sleep(0.1)
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert len(notes) == 1 and "the study goes on" in notes[0]
    runs = mlflow_runs(uri, "digits")
    points = {run: len(history["validation_accuracy"]) for run, (_, history) in runs.items()}
    assert points == {"distill-0123456789/000": 3, "distill-0123456789/001": 1}


# -- Weights & Biases


def leveldb_log(path):
    """The records of a file in LevelDB's log format, in which W&B keeps its runs: blocks of 32 KiB with parts of
    records, each with a checksum, a length and whether the record begins, goes on or ends there."""
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", content[at + 4: at + 7])
        record += content[at + 7: at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_runs(folder):
    """What the runs kept here say, by name: configuration and history."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    found = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        name, config, history = None, {}, []
        for record in map(WandbRecord.FromString, leveldb_log(path)):
            if record.HasField("run"):
                name = record.run.display_name
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                history.append({item.key or item.nested_key[0]: json.loads(item.value_json)
                                for item in record.history.item})
        found.setdefault(name, []).append((config, history))
    return found


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed: pip install 'kdstudy[wandb]'")
def test_weights_and_biases_gets_a_run_per_trial(tmp_path, monkeypatch):
    """Kept here, as there is no server: WANDB_MODE=offline."""
    import ray

    monkeypatch.setenv("WANDB_MODE", "offline")
    home, record = a_study(tmp_path)
    context, notes = watching(home, "watch.wandb=project")
    with ray.init(num_cpus=1, log_to_driver=False), context:
        add_report(record, 1, 4)
        add_report(record, 1, 6, "complete")
    assert not notes
    runs = wandb_runs(tmp_path)
    assert set(runs) == {"distill-0123456789/001"}  # the other had ended before this driver began
    (config, history), = runs["distill-0123456789/001"]
    assert config["temperature"] == 4 and config["lr"] == 2e-3 and config["stage"] == "distill"
    assert not {"task", "checkpoint", "parameters"} & set(config)
    expected = expected_of(record)[1]["validation_accuracy"]
    assert [(row["epoch"], row["validation_accuracy"]) for row in history] == [
        (epoch, pytest.approx(value)) for epoch, value in expected]


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed: pip install 'kdstudy[wandb]'")
def test_without_a_key_weights_and_biases_is_refused_before_anything_starts(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, out, err = here("run", "digits", "--set", "watch.wandb=project")
    assert code == 2 and is_one_line(err) and "wandb login" in err and "✓" not in out

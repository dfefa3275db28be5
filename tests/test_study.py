"""Whole studies through the command line, on a real (local) Ray cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from running import KDSTUDY, ONE_AT_A_TIME, kdstudy, results_of, with_set
from synthetic import here, is_one_line, write_finished
from yardstick import slowness

from kdstudy.config.load import load_study
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.study import Study


def records_of(folder):
    return {path.parent.name: Record(path, write=False) for path in folder.glob("*/record.jsonl")}


def test_one_command_goes_from_an_empty_folder_to_a_verdict(finished):
    folder, printed = finished
    results = results_of(folder)
    rows = {(row["arm"], row["configuration"]): row for row in results["rows"]}
    assert {("teacher", "default"), ("baseline", "default"), ("baseline", "tuned"), ("distilled", "default"),
            ("distilled", "only lr tuned"), ("distilled", "tuned")} == set(rows)
    assert all(row["seeds"] == 2 for (arm, _), row in rows.items() if arm != "teacher")
    gain = results["gain"]
    assert gain["low"] <= gain["mean"] <= gain["high"] and gain["seeds"] == 2 and gain["images"] == 360
    difference = rows["distilled", "tuned"]["test_mean"] - rows["baseline", "tuned"]["test_mean"]
    assert gain["mean"] == pytest.approx(difference)
    assert results["verdict"] in " ".join(printed.split())
    for name in ("report.html", "results.md", "trials.csv", "curves.csv"):
        assert (folder / "results" / name).stat().st_size > 0
    assert (folder / "export" / "config.json").exists()
    for noise in ("Traceback", "WARNING", "(pid=", "ray::"):
        assert noise not in printed


def test_the_table_says_what_the_predictions_say(finished):
    folder, _ = finished
    confirm = next(folder.glob("confirm-*"))
    for row in json.loads((confirm / "done.json").read_text())["rows"]:
        accuracies = []
        for run in row["runs"]:
            table = pd.read_parquet(confirm / "runs" / f"{run:03d}" / "test.parquet")
            assert len(table) == 360 and (np.stack(table["logits"]).argmax(1) == table["prediction"]).mean() > 0.95
            accuracies.append(100 * (table["label"] == table["prediction"]).mean())
        reported = next(other for other in results_of(folder)["rows"]
                        if (other["arm"], other["configuration"]) == (row["arm"], row["configuration"]))
        assert reported["test_mean"] == pytest.approx(np.mean(accuracies))
        assert reported["test_sd"] == pytest.approx(np.std(accuracies, ddof=1))


def test_confirmation_seeds_are_fresh_and_paired(finished):
    folder, _ = finished
    records = {name.split("-")[0]: record for name, record in records_of(folder).items()}
    searched = {trial.seed for arm in ("baseline", "distill") for trial in records[arm].trials.values()}
    runs = records["confirm"].trials.values()
    assert not searched & {run.seed for run in runs}
    for label in {run.label for run in runs}:
        assert len({run.seed for run in runs if run.label == label}) == 2


def test_running_it_again_does_nothing_and_says_so(finished, monkeypatch):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")
              if path.is_file() and path.parent != folder}
    monkeypatch.chdir(folder.parent.parent)
    code, again, _ = here("run", *ONE_AT_A_TIME)
    assert code == 0 and "Nothing to do" in again
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_study_that_goes_on_with_a_search_starts_ray_in_its_own_way(finished, tmp_path):
    """Its first stage with work proposes trials one by one: nothing has asked for slots before. Ray on its own would
    show its dashboard's address and the workers' logs, and workers would import from the current folder."""
    folder = shutil.copytree(finished[0], tmp_path / "studies" / "digits-smoke")
    trials = load_study(str(folder)).search.trials
    done = subprocess.run([*KDSTUDY, "run", str(folder), "--until", "distill", "--set", f"search.trials={trials + 1}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{trials + 1} trials" in done.stdout and not done.stderr.strip()
    assert "dashboard" not in done.stdout and "Checkpoint successfully" not in done.stdout


@pytest.mark.parametrize("row", ["baseline tuned", "distilled only lr tuned"])
def test_every_confirmed_row_can_be_exported(finished, tmp_path, row):
    """The export checks by itself that the weights repeat that row's predictions."""
    folder, _ = finished
    code, _, _ = here("export", str(folder), str(tmp_path / "student"), "--row", row)
    arm, configuration = row.split(" ", 1)
    done = next(done for path in folder.glob("confirm*/done.json") for done in [json.loads(path.read_text())]
                if any(one["arm"] == arm for one in done["rows"]))
    run = next(one for one in done["rows"] if (one["arm"], one["configuration"]) == (arm, configuration))["runs"][0]
    assert code == 0 and json.loads((tmp_path / "student" / "kdstudy.json").read_text())["run"] == run
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"This is the row “{row}” of that study, not the student that it chose." in card
    assert ("trained on labels alone" in card) == (arm == "baseline") == ("temperature" not in card)
    code, _, said = here("export", str(folder), str(tmp_path / "other"), "--row", "distilled best")
    assert code == 2 and "--row 'distilled best' is not a row of" in said and "'distilled default'" in said


def test_the_exported_student_repeats_its_recorded_accuracy_in_plain_timm(finished, tmp_path):
    """In a process that cannot import kdstudy: timm and the test images alone."""
    folder, _ = finished
    assert here("export", str(folder), str(tmp_path / "student"))[0] == 0
    assert here("export", str(folder), str(tmp_path / "teacher"), "--model", "teacher")[0] == 0
    from kdstudy.trainables.data import load
    from kdstudy.trainables.settings import DataSettings

    test = load(DataSettings(source="digits", student_images=0.1)).test
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    script = """
import sys
sys.modules["kdstudy"] = None
import numpy as np, timm, torch
test = np.load("test.npz")
for name in ("student", "teacher"):
    model = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    images = torch.from_numpy(test["images"]).float() / 255
    size = config["input_size"][1:]
    if images.shape[2:] != size:
        images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        predictions = model((images - mean) / std).argmax(1).numpy()
    print((predictions == test["labels"]).mean())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    student, teacher = map(float, done.stdout.split())
    confirm = next(folder.glob("confirm-*"))
    run = next(row for row in json.loads((confirm / "done.json").read_text())["rows"]
               if (row["arm"], row["configuration"]) == ("distilled", "tuned"))["runs"][0]
    recorded = pd.read_parquet(confirm / "runs" / f"{run:03d}" / "test.parquet")
    assert student == (recorded["label"] == recorded["prediction"]).mean()
    assert 100 * teacher == pytest.approx(results_of(folder)["rows"][0]["test_mean"])
    card = (tmp_path / "student" / "README.md").read_text()
    assert "360 test images" in card and "temperature" in card and "A trial run" in card and "interval" not in card


def test_the_optuna_files_hold_the_search(finished):
    import optuna

    folder, _ = finished
    for name in ("baseline", "distill"):
        path = next(folder.glob(f"{name}-*")) / "optuna.db"
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
        states = [trial.state.name for trial in study.trials]
        assert len(states) == 6 and set(states) <= {"COMPLETE", "PRUNED"}


def test_a_study_beside_it_takes_over_the_teacher_and_the_baseline(finished):
    """Another distillation space: neither teacher nor baseline has to be trained again."""
    folder, _ = finished
    other = folder.parent / "other"
    settings = with_set(["search.alpha.linear=[0.2,0.8]", "name=other"])
    code, printed, _ = here("run", *ONE_AT_A_TIME, "--dir", str(other), "--until", "baseline", *settings)
    assert code == 0 and " ".join(printed.split()).count("taken from digits-smoke") == 2
    for stage in ("teacher", "baseline"):
        theirs, ours = next(folder.glob(f"{stage}-*")), next(other.glob(f"{stage}-*"))
        assert theirs.name == ours.name
        assert (theirs / "record.jsonl").read_bytes() == (ours / "record.jsonl").read_bytes()


@pytest.mark.slow
def test_a_stage_whose_files_have_gone_is_not_done_and_not_taken_over(finished, tmp_path):
    import shutil

    folder, _ = finished
    for name in ("broken", "fresh"):
        shutil.copytree(folder, tmp_path / name)
    weights = next((tmp_path / "broken").glob("teacher-*")) / "model.safetensors"
    intact = weights.read_bytes()
    weights.unlink()
    shutil.rmtree(next((tmp_path / "fresh").glob("teacher-*")))
    kdstudy("run", *ONE_AT_A_TIME, "--dir", tmp_path / "fresh", "--until", "teacher", cwd=tmp_path)
    again = next((tmp_path / "fresh").glob("teacher-*")) / "model.safetensors"
    assert again.read_bytes() == intact  # trained anew, to the last bit, not taken from the broken neighbour
    printed = kdstudy("run", *ONE_AT_A_TIME, "--dir", tmp_path / "fresh", cwd=tmp_path).stdout
    redone = [line.split()[1] for line in printed.splitlines() if "✓" in line]
    assert redone == ["report"]  # which says how long the teacher took this time; all else still holds


def test_a_loop_on_its_own_repeats_the_searchs_first_trial(finished):
    folder, _ = finished
    assert here("train", "distill", str(folder), "--out", str(folder / "solo"))[0] == 0
    history = json.loads((folder / "solo" / "result.json").read_text())["history"]
    record = Record(next(folder.glob("distill-*")) / "record.jsonl", write=False)
    assert [report["validation_loss"] for report in history] == [
        report["metrics"]["validation_loss"] for report in record.trials[0].reports]


@pytest.mark.slow
def test_of_several_learning_rates_the_teacher_keeps_the_best_on_validation(tmp_path):
    settings = ["teacher.lr=[1e-5, 3e-3]", "teacher.epochs=3"]
    kdstudy("run", "digits", *with_set(settings), "--until", "teacher", cwd=tmp_path)
    stage = next(tmp_path.glob("studies/digits/teacher-*"))
    done = json.loads((stage / "done.json").read_text())
    trials = Record(stage / "record.jsonl", write=False).trials
    accuracies = {trial.parameters["lr"]: trial.metric("validation_accuracy") for trial in trials.values()}
    assert len(accuracies) == 2 and done["parameters"]["lr"] == max(accuracies, key=accuracies.get)
    assert done["best_validation"] == max(accuracies.values()) and done["trials"] == 2


@pytest.mark.slow  # test_faults.py has a trial whose loss is NaN in any case
def test_a_diverging_trial_fails_alone(tmp_path):
    """SGD with lr = 1000 in the default point: NaN at once. The study goes on, and that trial is never the winner."""
    settings = ["search.lr={choice=[1e-3, 1000]}", "default.lr=1000", "search.baseline_trials=4", "train.optimizer=sgd"]
    kdstudy("run", *ONE_AT_A_TIME, *with_set(settings), "--until", "baseline", cwd=tmp_path)
    record = next(iter(Record(path, write=False) for path in tmp_path.glob("studies/*/baseline-*/record.jsonl")))
    assert record.trials[0].state == "failed" and "at epoch" in record.trials[0].reason
    done = json.loads(next(tmp_path.glob("studies/*/baseline-*/done.json")).read_text())
    assert done["winner"] != 0 and done["failed"] >= 1
    status = kdstudy("status", tmp_path / "studies" / "digits-smoke", cwd=tmp_path).stdout
    assert "baseline trial 0 failed" in status


@pytest.mark.slow
def test_a_cache_over_its_budget_falls_back_to_the_teacher_in_the_loop_and_says_so(tmp_path):
    settings = ["views.cache_gib=1e-6", "train.epochs=10", "teacher.epochs=1", "search.trials=2", "search.protected=1",
                "search.baseline_trials=1", "search.baseline_protected=0"]
    printed = kdstudy("run", *ONE_AT_A_TIME, *with_set(settings), "--until", "distill", cwd=tmp_path).stdout
    assert "the teacher runs in the loop instead" in " ".join(printed.split())
    record = next(iter(Record(path, write=False) for path in tmp_path.glob("studies/*/distill-*/record.jsonl")))
    assert record.trials[0].state == "complete" and record.trials[0].metric("soft_loss") > 0
    assert not list(tmp_path.glob("studies/*/teacher_logits-*/views-*"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "digit"], "did you mean 'digits'?"),
    (["run", "digits", "--set", "resources.cpus_per_trial=4096"], "resources.cpus_per_trial = 4096 is more than the"),
    (["run", "digits", "--set", "resources.gpus_per_trial=64"], "resources.gpus_per_trial = 64 is more than the"),
    (["run", "digits", "--set", "data.student_images=0.002"], "data.student_images = 0.002 cannot be stratified"),
    (["run", "digits", "--set", "data.source=digts"], "did you mean 'digits'?"),
    (["run", "digits", "--set", "student.image_size=9"], "student.image_size = 9 is not a multiple"),
    (["status", "digits"], "has not been started"),
    (["report", "digits"], "has not been started"),
    (["export", "digits", "out"], "has not been started"),
    (["train", "teacher", "digits", "--alpha", "0.5"], "--alpha does not apply to the teacher loop"),
    (["train", "distill", "digits", "--alpha", "1.5"], "--alpha = 1.5: must be at most 1"),
    (["plan", "digits", "--set", "student.model=resnt18"], "did you mean 'resnet18'?"),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = here(*arguments)
    assert code == 2, out + err
    assert message in err and is_one_line(err)


def test_plan_starts_nothing_and_says_what_there_is_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, printed, _ = here("plan", "digits")
    for text in ("58,474 parameters", "167,018 parameters", "epoch 40, 120 of 300", "confirm"):
        assert text in printed
    assert list(tmp_path.iterdir()) == []


def test_plan_and_report_of_a_finished_study_whose_search_is_to_change(finished):
    folder, _ = finished
    _, planned, _ = here("plan", str(folder), "--set", "search.lr={log=[1e-4, 2e-2]}")
    lines = {line.split("  ")[0]: "done, took" in line for line in planned.splitlines()}
    assert lines["teacher"] and lines["teacher logits"] and not lines["baseline"] and not lines["confirm"]


@pytest.mark.parametrize("command", [["export", "mine"], ["pack", "mine"], ["logits", "mine"], ["fetch", "mine"]])
def test_what_is_written_here_is_not_written_to_a_folder_named_like_a_uri(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = here(*command, "s3://bucket/out")
    assert code == 2 and list(tmp_path.iterdir()) == []
    assert err.startswith("kdstudy: s3://bucket/out is a URI, but this command writes to this machine: ")


def test_a_uri_with_a_slash_too_few_is_no_folder():
    code, _, err = here("plan", "digits", "--dir", "s3:/bucket/mine")
    assert (code, err) == (2, "kdstudy: s3:/bucket/mine is neither a folder nor a URI; did you mean "
                              "s3://bucket/mine?\n")


@pytest.mark.parametrize("lacking", [None, "confirm", "confirm_baseline"])
def test_a_control_that_fails_holds_back_no_report_of_an_answer(finished, tmp_path, monkeypatch, lacking):
    def fails(self):
        raise StudyFailedError("control_self: its run failed")

    copied = shutil.copytree(finished[0], tmp_path / "mine")
    (copied / "results" / "report.html").unlink()
    if lacking:
        next(copied.glob(f"{lacking}-*/done.json")).unlink()
    (copied / ".tune" / "000").mkdir(parents=True)  # with checkpoints of runs that were cut off
    monkeypatch.setattr("kdstudy.driver._Driver._run_stages", fails)
    code, printed, err = here("run", str(copied), "--until", "report")
    assert code == 1 and is_one_line(err) and "control_self: its run failed" in err
    assert (copied / "results" / "report.html").is_file() == (lacking is None)
    assert ("is written all the same" in " ".join(printed.split())) == (lacking is None)
    assert (copied / ".tune" / "000").exists()


def test_settings_that_are_not_those_of_before_are_named(finished, tmp_path):
    """Somebody who forgets a --set should notice before hours have gone by."""
    folder = shutil.copytree(finished[0], tmp_path / "mine")
    _, printed, _ = here("run", *ONE_AT_A_TIME, "--dir", str(folder), "--set", "confirm.seeds=1", "--until", "distill")
    note = f"note: {folder} was run with other settings before; now confirm.seeds = 1 instead of 2"
    assert note in " ".join(printed.split())
    code, printed, _ = here("run", str(folder), "--until", "distill")
    assert code == 0 and "other settings" not in printed


def test_a_setting_that_is_new_and_has_its_default_is_no_change(synthetic_study, tmp_path):
    folder = shutil.copytree(synthetic_study, tmp_path / "mine")
    text = (folder / "study.toml").read_text()
    earlier = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("hang_minutes"))
    assert earlier != text
    (folder / "study.toml").write_text(earlier)
    study = Study(load_study(str(folder)), Storage(folder))
    assert study._changes(study.config.to_toml()) == {}
    assert study._changes(load_study(str(folder), ("about=",)).to_toml()) == {}
    other = Study(load_study(str(folder), ("resources.hang_minutes=7",)), Storage(folder))
    said = []
    other.begin(said.append)
    assert "now resources.hang_minutes = 7.0 instead of 5.0. So teacher, baseline, " in said[0]


OTHER_QUESTION = {"data.student_images=0.5": "other images", "student.args={patch_size=4,embed_dim=48,depth=2}":
                  "another student"}


@pytest.mark.parametrize("setting", OTHER_QUESTION)
def test_other_images_or_another_student_do_not_replace_a_finished_study(setting, synthetic_study, tmp_path):
    """Its report and its exported weights may be in use, and its settings are written nowhere else."""
    folder = shutil.copytree(synthetic_study, tmp_path / "mine")
    text = (folder / "study.toml").read_text().replace("smoke = true", "smoke = false")
    (folder / "study.toml").write_text(text)
    (folder / "results").mkdir(exist_ok=True)
    other, said = Study(load_study(str(folder), (setting,)), Storage(folder)), []
    with pytest.raises(UserError, match=f"is a study of {OTHER_QUESTION[setting]}: .* --dir {folder}-2"):
        other.begin(said.append)
    assert (folder / "study.toml").read_text() == text and said == []
    shutil.rmtree(folder / "results")
    other.begin(said.append)
    assert said[0].startswith(f"{folder} was run with other settings before") and " begin anew. " in said[0]


def test_images_that_have_moved_are_the_same_images(tmp_path):
    images, rng = tmp_path / "images.npz", np.random.default_rng(0)
    np.savez(images, images=rng.integers(0, 256, (400, 8, 8), np.uint8), labels=np.arange(400) % 10)
    folder = write_finished(tmp_path / "mine", f"data.source={images}", "data.classes=10", "smoke=false")
    (folder / "results").mkdir()
    moved = images.rename(tmp_path / "moved.npz")
    said = []
    Study(load_study(str(folder), (f"data.source={moved}",)), Storage(folder)).begin(said.append)
    assert f"now data.source = {moved} instead of {images}. So teacher, " in said[0] and "anew" not in said[0]


def test_an_estimate_for_gpus_says_that_it_is_one(apart):
    _, printed, _ = here("plan", "digits", "--gpus", "4", "--set", "resources.gpus_per_trial=0.5")
    assert "8 at a time, each 1 CPU + 0.5 GPU" in printed and "An estimate, not measured" in printed


@pytest.mark.parametrize("width", ["60", "80", "100"])
def test_every_setting_is_listed_with_its_default_and_its_purpose(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    lines = here("settings")[1].splitlines()
    assert max(map(len, lines)) <= int(width)
    for section, name in (("[search]", "  search.baseline_trials = 20 "), ("[data]", "  data.label_column "),
                          ("[teacher]", "  teacher.lr = 0.0003 "), ("above all sections", "  seed = 0 ")):
        own = lines[lines.index(section) + 1:]
        own = own[: next((index for index, line in enumerate(own) if line.startswith("[")), None)]
        assert any(line.startswith(name) for line in own), (section, name)
    assert all(line[36:].strip() for line in lines if line.startswith("  ")), "a setting says nothing of its purpose"


@pytest.mark.parametrize("command", ["", "run", "plan", "status", "report", "export", "logits", "pack", "train",
                                     "presets", "settings"])
def test_help_is_quick_and_reads_well(command):
    slow, started = slowness(), time.monotonic()
    done = subprocess.run([*KDSTUDY, *command.split(), "--help"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
    seconds = time.monotonic() - started
    assert done.returncode == 0 and "Usage:" in done.stdout
    assert "..." not in re.sub(r"(ARGS\]|STUDY)\.\.\.", "", done.stdout)  # nothing is cut short
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported and not imported & {"torch", "timm", "ray", "optuna", "pandas", "plotly"}
    assert seconds < 3 * max(slow, slowness())


def test_no_stray_files_are_left_in_the_study(finished):
    folder, _ = finished
    assert not list(folder.rglob(".tune")) and not list(folder.rglob("*.draft"))
    assert {path.name.split("-")[0] for path in folder.iterdir() if not path.name.startswith(".")} <= {
        "teacher", "baseline", "teacher_logits", "distill", "confirm_baseline", "confirm", "results", "export", "solo",
        "study.toml", "stages.json"}

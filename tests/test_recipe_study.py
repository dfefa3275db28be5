"""A whole study whose search is over the recipe: from the record to the exported folder's config and card."""

import json
import os
import signal
import subprocess

import optuna
import pytest
import timm
from running import KDSTUDY, kdstudy, results_of, wait_until
from safetensors.torch import load_file

STUDY = """
[data]
source = "digits"
student_images = 0.2
[teacher]
model = "resnet18"
args = {layers = [1, 1, 1, 1], channels = [16, 16, 32, 32]}
image_size = 32
epochs = 4
batch_size = 32
lr = 3e-3
ema = 0.9
freeze = 1
[student]
model = "vit_tiny_patch16_224"
args = {patch_size = 4, embed_dim = 48, depth = 2, num_heads = 3}
[train]
epochs = 9
batch_size = 18
accumulate = 2
warmup_epochs = 1
min_lr = 1e-5
clip_grad = 1.0
drop_path = 0.1
label_smoothing = 0.05
[default]
lr = 3e-3
[search]
trials = 8
protected = 6
baseline_trials = 7
baseline_protected = 6
checkpoint_every = 1
lr = {log = [1e-3, 1e-2]}
freeze = {choice = [0, 2, "all"]}
ema = {choice = [0, 0.9, 0.999]}
drop_path = {linear = [0, 0.3]}
[finalists]
configurations = 0
[confirm]
seeds = 2
"""
SEARCHED = {"lr", "freeze", "ema", "drop_path"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("recipe")
    (home / "recipe.toml").write_text(STUDY)
    kdstudy("run", "recipe.toml", "--dir", "mine", cwd=home)
    return home / "mine"


def events_of(folder, stage):
    (record,) = folder.glob(f"{stage}-*/record.jsonl")
    return [json.loads(line) for line in record.read_text().splitlines()]


@pytest.mark.slow
def test_each_trial_has_its_own_recipe_and_the_table_says_which(folder):
    for arm in ("baseline", "distill"):
        trials = [event["parameters"] for event in events_of(folder, arm) if event["event"] == "trial"]
        assert all(set(trial) >= SEARCHED for trial in trials)
        assert len({str(trial["freeze"]) for trial in trials}) > 1 and len({trial["ema"] for trial in trials}) > 1
        (database,) = folder.glob(f"{arm}-*/optuna.db")
        (name,) = optuna.study.get_all_study_names(f"sqlite:///{database}")
        told = optuna.load_study(study_name=name, storage=f"sqlite:///{database}").trials
        assert [trial.params["freeze"] for trial in told] == [trial["freeze"] for trial in trials]
    rows = [row for row in results_of(folder)["rows"] if row["arm"] != "teacher"]
    assert {row["configuration"] for row in rows} >= {"default", "tuned"} and all(set(row) >= SEARCHED for row in rows)
    table = (folder / "results" / "results.md").read_text()
    assert "default: lr 3e-3, freeze 0, ema 0, drop_path 0.1" in table
    page = (folder / "results" / "report.html").read_text()
    assert "frozen epochs" in page and "EMA decay" in page


@pytest.mark.slow
def test_the_exported_student_is_what_was_tested_with_no_trace_of_dropping_weights(folder):
    exported = folder / "export"
    config = json.loads((exported / "config.json").read_text())
    assert "drop_path_rate" not in config["model_args"]
    chosen = next(row for row in results_of(folder)["rows"] if row["arm"] == "distilled" and row.get("primary"))
    card = (exported / "README.md").read_text()
    assert f"freeze {chosen['freeze']}" in card and "accumulate 2" in card and "label_smoothing 0.05" in card
    assert ("averaged weights (EMA)" in card) == bool(chosen["ema"])
    net = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert set(net.state_dict()) == set(load_file(exported / "model.safetensors"))


@pytest.mark.slow
def test_a_second_run_has_nothing_left_to_do(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("record.jsonl")}
    kdstudy("run", "mine", cwd=folder.parent)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("record.jsonl")}


def accuracies(events):
    return {(event["trial"], event["epoch"]): (event["metrics"]["validation_accuracy"], event["metrics"]["train_loss"])
            for event in events if event["event"] == "report"}


@pytest.mark.slow
def test_a_killed_search_goes_on_with_averages_and_frozen_weights_as_if_nothing_had_been(folder, tmp_path):
    (tmp_path / "recipe.toml").write_text(STUDY)
    command = [*KDSTUDY, "run", "recipe.toml", "--dir", "mine", "--until", "baseline"]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def has_begun():
        saved = [event for event in events_of(tmp_path / "mine", "baseline") if event["event"] == "checkpoint"]
        return len({event["trial"] for event in saved}) > 2 and saved[-1]["epoch"] < 8

    wait_until(driver, lambda: any((tmp_path / "mine").glob("baseline-*/record.jsonl")) and has_begun())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    kdstudy(*command[3:], cwd=tmp_path)
    events = events_of(tmp_path / "mine", "baseline")
    assert sum(event["event"] == "session" for event in events) == 2
    assert not any(event["event"] == "mismatch" for event in events)
    again, whole = accuracies(events), accuracies(events_of(folder, "baseline"))
    both = again.keys() & whole.keys()  # what a trial runs while the decision to stop it waits depends on the machine
    assert {key: again[key] for key in both} == {key: whole[key] for key in both}
    assert {trial for trial, epoch in both if epoch == 9} >= set(range(7)) - {
        event["trial"] for event in events if event.get("decision") == "stop"}

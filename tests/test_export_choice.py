"""Which model is exported: each arm, row, seed, average and trial is the one that was asked for."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from synthetic import here

from kdstudy.analysis.study_files import StudyFiles
from kdstudy.analysis.trials_table import trials_table
from kdstudy.cli.console import _better_baseline
from kdstudy.errors import UserError
from kdstudy.export import card
from kdstudy.export.average import MeanOfLogits, average_weights, measure_batch_norm
from kdstudy.trainables import models
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import ModelSettings, TrainSettings


def export(study, out, *words):
    code, printed, said = here("export", str(study), str(out), *words)
    return code, printed, said


def same_weights(exported, run):
    first, second = load_file(exported / "model.safetensors"), load_file(run / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("arm", ["student", "baseline"])
def test_a_seed_of_either_arm_is_exported_with_its_own_accuracy(finished, tmp_path, arm):
    study = StudyFiles(finished[0])
    row = study.confirmed_row("distilled" if arm == "student" else "baseline")
    seeds = study.done(row["stage"])["seeds"]
    for seed, run in zip(seeds, row["runs"], strict=True):
        code, printed, _ = export(study.folder, tmp_path / "out", "--model", arm, "--seed", str(seed))
        assert code == 0 and f"{100 * study.correct(run, row['stage']).mean():.2f} % test accuracy" in printed
        assert same_weights(tmp_path / "out", study.stage(row["stage"]) / "runs" / f"{run:03d}")
        assert f"with seed {seed}" in (tmp_path / "out" / "README.md").read_text()
    code, _, said = export(study.folder, tmp_path / "other", "--seed", "3")
    assert code == 2 and f"--seed 3 is not a confirmation seed; these are {seeds[0]}, " in said
    assert not (tmp_path / "other").exists()


def test_a_trial_is_trained_again_to_what_the_search_has_recorded(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "study")
    trials = StudyFiles(folder).trials
    whole = trials[(trials["stage"] == "distill") & (trials["ended"] == "complete")].iloc[0]
    code, printed, _ = export(folder, tmp_path / "out", "--trial", str(whole["trial"]))
    assert code == 0 and "note:" not in printed  # the very same validation accuracy
    assert f"validation {100 * whole['last_validation_accuracy']:.2f} %" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"This is trial {whole['trial']} of the study's search" in card and "chose and confirmed" in card
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True) is not None
    again = export(folder, tmp_path / "again", "--trial", str(whole["trial"]))
    assert again[0] == 0 and "already trained again" in again[1]
    assert same_weights(tmp_path / "again", tmp_path / "out")


def test_a_stopped_trial_is_exported_only_if_that_is_meant(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "study")
    trials = StudyFiles(folder).trials
    stopped = trials[(trials["stage"] == "baseline") & (trials["ended"] == "stopped")]
    assert len(stopped), "the smoke study stops some trials"
    trial = stopped.iloc[0]
    code, _, said = export(folder, tmp_path / "out", "--model", "baseline", "--trial", str(trial["trial"]))
    assert code == 2 and f"was stopped early, after epoch {trial['epochs']} of" in said and "add --stopped" in said
    code, printed, _ = export(folder, tmp_path / "out", "--model", "baseline", "--trial", str(trial["trial"]),
                              "--stopped")
    assert code == 0 and f"validation {100 * trial['last_validation_accuracy']:.2f} %" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"It was stopped early, after epoch {trial['epochs']} of" in card and "on labels alone" in card


@pytest.mark.parametrize("words, message", [
    (["--trial", "999"], "has no such trial; its trials are 0 to"),
    (["--stopped"], "--stopped allows a stopped --trial"),
    (["--model", "teacher", "--seed", "1"], "--seed says which student is meant"),
    (["--model", "teacher", "--average", "logits"], "--average says which student is meant"),
    (["--model", "baseline", "--row", "distilled default"], "leave out --row or --model"),
    (["--trial", "1", "--seed", "1"], "--trial and --seed exclude each other"),
    (["--average", "weights"], "start from the same trained weights"),
    (["--average", "logits"], "--format timm holds one model"),
])
def test_what_cannot_be_meant_is_one_line(finished, tmp_path, words, message):
    code, _, said = export(finished[0], tmp_path / "out", *words)
    assert code == 2 and message in said and not (tmp_path / "out").exists()


def test_the_trials_are_listed_in_order(finished):
    study = StudyFiles(finished[0])
    code, printed, _ = here("trials", str(finished[0]), "--top", "3", "--search", "distill")
    rows = [line.split() for line in printed.splitlines() if line.startswith("distill ")]
    own = study.trials[study.trials["stage"] == "distill"]
    best = own.sort_values("last_validation_accuracy", ascending=False, kind="stable").head(3)
    assert code == 0 and [int(row[1]) for row in rows] == best["trial"].tolist()
    assert f"{100 * best['last_validation_accuracy'].iloc[0]:.2f}" in rows[0]
    code, printed, _ = here("trials", str(finished[0]), "--sort", "lr")
    numbers = [float(line.split(" lr ")[1].split()[0]) for line in printed.splitlines() if " lr " in line]
    assert len(numbers) == study.trials["stage"].isin(["baseline", "distill"]).sum() and numbers == sorted(numbers)
    assert here("trials", str(finished[0]), "--sort", "colour")[0] == 2


def test_averages_are_means(tmp_path):
    generator = torch.Generator().manual_seed(0)
    settings = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)
    nets = [models.build(settings, classes=3, channels=1, image_size=32, seed=seed).eval() for seed in (0, 1, 2)]
    for number, net in enumerate(nets):
        models.save_weights(net, tmp_path / f"{number}.safetensors")
    images = torch.rand(5, 1, 32, 32, generator=generator)
    with torch.no_grad():
        singles = torch.stack([net(images) for net in nets])
        assert torch.allclose(MeanOfLogits(nets)(images), singles.mean(0))
    same = nets[0].net.bn1.bias  # zeros in all of them
    differ = average_weights([tmp_path / f"{number}.safetensors" for number in range(3)], tmp_path / "mean.safetensors")
    assert "conv1.weight" in differ and "bn1.bias" not in differ and not same.any()
    mean = load_file(tmp_path / "mean.safetensors")
    for name, tensor in mean.items():
        own = [net.net.state_dict()[name] for net in nets]
        assert torch.allclose(tensor, sum(own) / 3) if tensor.is_floating_point() else torch.equal(tensor, own[0])
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not of one model"):
        average_weights([tmp_path / "0.safetensors", tmp_path / "other.safetensors"], tmp_path / "mean.safetensors")


def test_an_average_of_weights_gets_statistics_of_its_own():
    """Against the mean and variance of the very activations that enter the first batch norm."""
    settings = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)
    model = models.build(settings, classes=3, channels=1, image_size=32).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 32, 32)).astype(np.uint8)
    last = model.net.layer4[0].bn2
    last.running_mean.fill_(3.0)  # of a part that was frozen in each run
    measure_batch_norm(model, ImageSet(pixels, np.zeros(40, np.int64)), {"bn1.running_mean", "bn1.weight"})
    assert (last.running_mean == 3).all()
    net = model.net
    with torch.no_grad():
        entering = net.conv1((torch.from_numpy(pixels).float() / 255 - model.shift) / model.divisor)
    norm = net.bn1
    assert torch.allclose(norm.running_mean, entering.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, entering.var((0, 2, 3)), rtol=1e-4)
    assert not any(module.training for module in model.modules())


def outcome(baseline, distilled, smoke=False):
    rows = [{"arm": "baseline", "configuration": "tuned", "test_mean": baseline},
            {"arm": "distilled", "configuration": "tuned", "test_mean": distilled}]
    return {"smoke": smoke, "rows": rows}


def test_a_student_that_is_worse_than_its_baseline_is_not_exported_without_a_word():
    assert _better_baseline(outcome(70.0, 69.5)) == "70.00 % against 69.50 %"
    assert not _better_baseline(outcome(69.5, 70.0)) and not _better_baseline(outcome(70.0, 70.0))
    assert not _better_baseline(outcome(70.0, 60.0, smoke=True))


def test_what_kdstudy_did_not_write_is_not_deleted(finished, tmp_path):
    assert export(finished[0], tmp_path / "out")[0] == 0
    assert export(finished[0], tmp_path / "out", "--model", "baseline")[0] == 0  # its own files are replaced
    (tmp_path / "out" / ".git").mkdir()
    code, _, said = export(finished[0], tmp_path / "out")
    assert code == 2 and "also holds '.git', which kdstudy did not write and would delete" in said
    assert (tmp_path / "out" / ".git").is_dir()


def test_trials_can_be_sorted_by_what_has_numbers_and_words():
    trials = pd.DataFrame({"stage": "distill", "trial": [0, 1, 2, 3], "freeze": [2, "all", 0, None], "epochs": 5,
                           "ended": "complete", "reason": None, "last_validation_accuracy": [0.1, 0.2, 0.3, 0.4],
                           "best_validation_accuracy": [0.1, 0.2, 0.3, 0.4]})
    study = SimpleNamespace(trials=trials, parameter_names=["freeze"])
    assert [row[0] for row in trials_table(study, None, "freeze", None).rows] == [
        "distill 2", "distill 0", "distill 1", "distill 3"]


def test_the_recipe_of_a_card_has_no_settings_that_a_trial_lacks():
    assert card._recipe(TrainSettings(), {"label_smoothing": float("nan"), "freeze": None, "ema": 0.9}) == {
        "epochs": TrainSettings().epochs, "ema": 0.9}

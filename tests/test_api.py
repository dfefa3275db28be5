"""The Python API: what the README shows, as a script or a notebook would use it."""

import os
import subprocess
import sys

import pandas as pd
import plotly.graph_objects as go
import pytest
from running import results_of

import kdstudy
from kdstudy.errors import UserError

SCRIPT = '''
import kdstudy

settings = kdstudy.load("digits", smoke=True, train={"epochs": 2}, confirm={"seeds": 2},
                        search={"trials": 2, "baseline_trials": 2, "protected": 1, "baseline_protected": 1})
plan = kdstudy.plan(settings, "mine")
study = kdstudy.run(settings, "mine")
print("VERDICT", study.verdict)
print("AGAIN", kdstudy.run(settings, "mine").verdict == study.verdict, int(plan["runs"].sum()))
print("FIGURES", *study.figures)
print("ROWS", len(study.results), len(study.trials), len(study.curves))
'''


def test_a_script_plans_runs_and_reads_a_study(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, text=True, capture_output=True, timeout=600,
                          env=os.environ | {"KDSTUDY_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.split(" ", 1) for line in done.stdout.splitlines()]
    said = {name: rest[0] for name, *rest in words if name.isupper() and rest}
    outcome = results_of(tmp_path / "mine")
    assert said["VERDICT"] == outcome["verdict"] and said["AGAIN"].startswith("True ")
    assert {"gain", "history"} <= set(said["FIGURES"].split())
    rows, trials, _ = map(int, said["ROWS"].split())
    assert rows == len(outcome["rows"]) and trials >= 2 + 2 + 1
    assert "stage" in done.stdout and "8/8 export" in done.stdout  # the plan's table, and the driver's lines


def test_settings_come_from_presets_dicts_and_changes(tmp_path):
    settings = kdstudy.load("digits", train={"epochs": 3}, seed=7, search={"lr": {"log": [1e-4, 1e-2]}})
    assert settings.train.epochs == 3 and settings.seed == 7 and settings.search.lr.log == (1e-4, 1e-2)
    assert settings.train.optimizer == kdstudy.load("digits").train.optimizer
    again = kdstudy.load(settings.to_values())
    assert again == settings
    (tmp_path / "own.toml").write_text(settings.to_toml())
    assert kdstudy.load(tmp_path / "own.toml") == settings
    with pytest.raises(UserError, match=r"train\.epoch is not a setting"):
        kdstudy.load("digits", train={"epoch": 3})


def test_an_open_study_has_tables_in_percent_figures_and_a_verdict(synthetic_study):
    study = kdstudy.open(synthetic_study)
    outcome = results_of(study.folder) if (study.folder / "results").exists() else None
    assert study.settings.name == "digits-smoke" and "over the tuned baseline" in study.verdict
    assert outcome is None or outcome["verdict"] == study.verdict
    assert isinstance(study.trials, pd.DataFrame) and set(study.trials["stage"]) >= {"baseline", "distill", "confirm"}
    percent = [name for name in study.trials if name.endswith("_percent")]
    assert percent and study.trials[percent].max().max() > 1  # shares would not exceed 1
    assert not [name for name in study.trials if "accuracy" in name and not name.endswith("_percent")]
    assert len(study.results) >= 4 and len(study.curves) > len(study.trials)
    for name in study.figures:
        assert isinstance(study.figure(name), go.Figure)
    shown = study._repr_html_()
    assert study.verdict.split(":")[0] in shown and "<table" in shown
    with pytest.raises(KeyError, match="there is no figure 'nonsense'; the figures are"):
        study.figure("nonsense")


def test_opening_what_is_no_study_says_so(tmp_path):
    with pytest.raises(UserError, match="is not a study folder"):
        kdstudy.open(tmp_path)


def test_a_strangers_functions_are_refused_unless_trusted(synthetic_study, tmp_path):
    received = tmp_path / "received"
    received.mkdir()
    text = (synthetic_study / "study.toml").read_text()
    model = next(line for line in text.split("[student]")[1].splitlines() if line.startswith("model"))
    (received / "study.toml").write_text(text.replace(model, 'model = "theirs.nets:tiny"'))
    (received / "stages.json").write_text((synthetic_study / "stages.json").read_text())
    with pytest.raises(UserError, match=r"names, not you, and its code would run; .*trust=True"):
        kdstudy.load(received)
    for use in (kdstudy.load, kdstudy.plan, kdstudy.run):  # nor by a detour
        with pytest.raises(UserError, match="names, not you, and its code would run"):
            use(kdstudy.open(received).settings)
    assert kdstudy.load(received, trust=True).student.model == "theirs.nets:tiny"

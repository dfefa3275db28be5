"""The Python API: what the README shows, as a script or a notebook would use it."""

import tomllib
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from running import results_of

import kdstudy
from kdstudy.errors import UserError


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
    assert study.settings.name == "digits-smoke"
    assert study.verdict == "A trial run: the study works; its numbers say nothing."
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
    assert not {"teachers", "controls", "audit", "losses"} & set(study.figures)
    there = ", ".join(study.figures)
    with pytest.raises(KeyError, match=f"there is no figure 'nonsense'; this study has {there}\\W*$"):
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


def test_every_folder_of_code_is_installed():
    """A wheel has only the packages that pyproject.toml lists; an editable installation would hide that one is missing.
    """
    root = Path(__file__).parent.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(root).parts) for top in ("study", "trainables", "analysis")
             for path in (root / top).rglob("__init__.py")}
    assert sorted(listed) == sorted("kdstudy" if name == "study" else f"kdstudy.{name.removeprefix('study.')}"
                                    for name in found)

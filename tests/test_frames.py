"""The DataFrames and the figures for a notebook: the report's numbers, in the units that their names say."""

import json
import shutil
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from test_report import complete, started, write_study  # noqa: F401, the first two are fixtures

from kdstudy.analysis import frames, report
from kdstudy.analysis.figures.learning_curves import learning_curves
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles

REAL_STUDY = Path(__file__).parent.parent / "study" / "presets" / "results" / "cifar100-small"
FRAMES = (frames.trials, frames.curves, frames.results, frames.classes, frames.prices)
SHARES = ("validation_accuracy", "last_validation_accuracy", "best_validation_accuracy", "agreement",
          "test_accuracy")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A committed study and what its files say."""
    folder = shutil.copytree(REAL_STUDY, tmp_path_factory.mktemp("real") / REAL_STUDY.name)
    results = folder / "results"
    files = {name: pd.read_csv(results / f"{name}.csv") for name in ("trials", "curves", "classes")}
    return folder, files, json.loads((results / "results.json").read_text())


@pytest.mark.parametrize("name", ["trials", "curves"])
def test_shares_of_the_files_are_percent_here(real, name):
    folder, files, _ = real
    frame, file = getattr(frames, name)(StudyAnalysis.of(folder)), files[name]
    shares = [column for column in file if column in SHARES]
    assert shares and len(frame) == len(file)
    for column in shares:
        assert frame[f"{column}_percent"].tolist() == pytest.approx((100 * file[column]).tolist(), nan_ok=True)
    assert frame.filter(like="accuracy").max().min() > 1
    others = [column for column in file if column in frame]
    assert {*frame} - {*others} == {f"{column}_percent" for column in shares} | (
        {"training_seconds"} if name == "curves" else set())
    assert frame.dropna()[others].shape == file.dropna()[others].shape


def test_classes_keep_their_numbers_under_names_that_say_the_unit(real):
    folder, files, _ = real
    frame, file = frames.classes(StudyAnalysis.of(folder)), files["classes"]
    names = {"teacher": "teacher_accuracy_percent", "baseline": "baseline_accuracy_percent",
             "distilled": "distilled_accuracy_percent", "gain": "gain_points", "low": "gain_low_points",
             "high": "gain_high_points"}
    assert [*frame] == [names.get(column, column) for column in file]
    for column in file.columns[1:]:
        assert frame[names.get(column, column)].tolist() == pytest.approx(file[column].tolist())


def test_results_are_the_rows_of_the_table(real):
    folder, _, outcome = real
    frame = frames.results(StudyAnalysis.of(folder)).set_index(["arm", "configuration"])
    assert len(frame) == len(outcome["rows"])
    for row in outcome["rows"]:
        mine = frame.loc[(row["arm"], row["configuration"])]
        assert mine["test_accuracy_percent"] == pytest.approx(row["test_mean"])
        assert pd.isna(mine["gain_points"]) == (row["gain"] is None)
        assert mine["model_parameters"] == row["parameters"]
    tuned = frame.loc[("distilled", "tuned")]
    gain = outcome["gain"]
    assert [tuned[name] for name in ("gain_points", "gain_low_points", "gain_high_points", "gain_p")] == pytest.approx(
        [gain[name] for name in ("mean", "low", "high", "p")])
    assert tuned["gap_closed_percent"] == pytest.approx(100 * outcome["rows"][-1]["gap_closed"])
    assert frame["trials"].dtype == frame["search_trial"].dtype == "Int64"


def test_prices_are_points_with_their_intervals(real):
    frame = frames.prices(StudyAnalysis.of(real[0]))
    assert frame["parameter"].tolist() == ["temperature", "alpha", "lr"]
    assert (frame["price_low_points"] < frame["price_points"]).all()
    assert (frame["price_points"] < frame["price_high_points"]).all()


def test_the_audit_is_that_of_the_results(real):
    folder, _, outcome = real
    frame = frames.audit(StudyAnalysis.of(folder)).set_index("protocol")
    for row in outcome["audit"]["protocols"]:
        assert frame.loc[row["protocol"], "gain_points"] == pytest.approx(row["gain"]["mean"])
        assert frame.loc[row["protocol"], "gain_high_points"] == pytest.approx(row["gain"]["high"])
    assert frames.controls(StudyAnalysis.of(folder)).empty


def test_every_accuracy_and_difference_says_its_unit(complete):  # noqa: F811
    for frame in (make(StudyAnalysis.of(complete[0])) for make in FRAMES):
        for column in frame:
            if any(word in column for word in ("accuracy", "agreement", "gain", "price", "gap")):
                assert column.endswith(("_percent", "_points")) or column == "gain_p"


def test_a_study_that_has_just_begun_has_the_same_columns(real, started, tmp_path):  # noqa: F811
    empty = StudyAnalysis.of(write_study(tmp_path / "empty", ()))
    begun, whole = StudyAnalysis.of(started), StudyAnalysis.of(real[0])
    for make in FRAMES:
        names = {*make(whole)} - {"temperature", "alpha", "lr", "batch_size", "test_accuracy_percent"}  # its own
        assert names <= {*make(begun)} and names <= {*make(empty)}
    assert len(frames.trials(begun)) == 2 and frames.results(begun).empty and frames.trials(empty).empty


def test_every_figure_of_the_report_has_a_name(real):
    folder = real[0]
    figures = report.figures(StudyAnalysis.of(folder))
    assert list(figures) == [name for name in report.FIGURES if name in figures]
    absent = {"teachers", "controls", "losses", "which-teacher", "deployment"}  # this study has none of these
    assert {*report.FIGURES} - {*figures} == absent
    assert all(isinstance(figure, go.Figure) and figure.data for figure in figures.values())
    shown = {exhibit.name: exhibit.figure for exhibit in report.exhibits(folder)}
    assert {name: figure.to_json() for name, figure in figures.items()} == {
        name: figure.to_json() for name, figure in shown.items()}


def test_the_figures_names_never_change():
    assert report.FIGURES == (
        "gain", "teachers", "controls", "audit", "price", "effect-curves", "map", "effects", "losses", "which-teacher",
        "rungs", "curves-distill", "curves-baseline", "parallel", "history", "slices", "teacher", "classes",
        "agreement", "calibration", "deployment", "budget")


def test_one_figure_is_drawn_alone(complete, monkeypatch):  # noqa: F811
    folder, _ = complete
    monkeypatch.setattr("kdstudy.analysis.study_analysis.analyse", lambda study: pytest.fail("not needed"))
    figure = report.figure(StudyAnalysis.of(folder), "curves-distill")
    assert figure.to_json() == learning_curves(StudyFiles(folder), "distill").to_json()


def test_a_figure_that_is_not_there_says_why(started):  # noqa: F811
    begun = StudyAnalysis.of(started)
    with pytest.raises(ValueError, match="there is no figure 'effect'; the figures are gain, teachers, controls, "
                                         "audit, price"):
        report.figure(begun, "effect")
    with pytest.raises(ValueError, match="'gain' cannot be drawn yet: This needs the confirmation on at least two"):
        report.figure(begun, "gain")
    for name in {*report.FIGURES} - {*report.figures(begun)}:
        with pytest.raises(ValueError, match=r"cannot be drawn yet: [A-Z].*\.$"):
            report.figure(begun, name)

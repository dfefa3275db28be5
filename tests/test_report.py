"""The report: right numbers, one self-contained page, at every state of a study."""

import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console
from running import results_of
from scipy import stats

from kdstudy.analysis import report, tables
from kdstudy.analysis.console_table import console_table
from kdstudy.analysis.figures import gain, learning_curves, style, trial_panels
from kdstudy.analysis.outcome import results
from kdstudy.analysis.sensitivity.latest import LATEST
from kdstudy.analysis.study_files import StudyFiles

INJECTION = "<script>alert(1)</script>"
IMAGES, SEEDS, EPOCHS = 200, 3, 8
# What each trial reported every second epoch, in percent, and how it ended. The best value of all is that of a trial
# that was stopped: it must not win, nor lift the best-so-far line.
BASELINE = {0: ([30, 50, 60, 62], "complete"), 1: ([35, 55, 65, 70], "complete"), 2: ([20], "stop"), 3: ([], "failed")}
DISTILL = {0: ([30, 52, 61, 66], "complete"), 1: ([40, 60, 72, 78], "complete"), 2: ([25, 40, 60, 74], "complete"),
           3: ([81], "stop"), 4: ([15, 18], "stop"), 5: ([11], "failed")}
POINTS = [(4.0, 0.5, 1e-3), (2.0, 0.9, 2e-3), (8.0, 0.1, 5e-4), (1.5, 0.3, 9e-3), (12.0, 0.7, 4e-4), (3.0, 0.6, 7e-3)]
ACCURACY = {("baseline", "default"): 0.60, ("baseline", "tuned"): 0.68, ("distilled", "default"): 0.66,
            ("distilled", "tuned"): 0.85}
STUDY = f"""
name = "tiny"
about = "{INJECTION} & more"
[teacher]
model = "resnet18"
[student]
model = "tiny_vit"
[search]
trials = 6
temperature = {{log = [1.0, 16.0]}}
alpha = {{linear = [0.0, 1.0]}}
lr = {{log = [3e-4, 1e-2]}}
[confirm]
seeds = {SEEDS}
[published]
pair = "Large → Small"
gain = 1.34
"""


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_study(folder: Path, stages: tuple[str, ...]) -> Path:
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    data = {"train": 500, "student_train": 500, "validation": 100, "test": IMAGES,
            "classes": [INJECTION, "b", "c", "d"], "image_size": 32}
    write_json(folder / "stages.json", {"name": "tiny", "data": data, "epochs": EPOCHS, "rungs": [2, 4],
                                        "stages": {stage: f"{stage}-0" for stage in stages}})
    return folder


def parameters_of(arm: str, number: int) -> dict[str, float]:
    names = ("temperature", "alpha", "lr")
    return {name: value for name, value in zip(names, POINTS[number], strict=True) if arm != "baseline" or name == "lr"}


def write_search(stage: Path, arm: str, trials: dict, done: dict | None) -> None:
    events = [{"event": "session"}]
    for number, (percents, ending) in trials.items():
        origin = "default" if number == 0 else "sobol" if number < 3 else "tpe"
        events.append({"event": "trial", "trial": number, "parameters": parameters_of(arm, number), "seed": number,
                       "view_seed": 0, "origin": origin, "protected": origin != "tpe", "label": ""})
        for index, percent in enumerate(percents):
            last = index == len(percents) - 1 and ending != "failed"
            events.append({"event": "report", "trial": number, "epoch": 2 * index + 2, "reason": None,
                           "decision": ending if last else "continue",
                           "metrics": {"validation_accuracy": percent / 100, "validation_loss": 1.0}})
        if ending == "failed":
            events.append({"event": "end", "trial": number, "reason": "<img src=x onerror=alert(1)> out of memory"})
    stage.mkdir()
    lines = [json.dumps({"sequence": index, "time": 0.0, **event}) for index, event in enumerate(events)]
    (stage / "record.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if done:
        write_json(stage / "done.json", done)


def write_test(path: Path, accuracy: float, generator: np.random.Generator) -> np.ndarray:
    """Write predictions of which about the given share is right; returns which are, (IMAGES,) bool.

    Each model finds other images easy, so that images differ in what they gain, as they do in truth.
    """
    lean = 0.4 * np.sin(37 * accuracy * np.arange(IMAGES))
    skill = generator.normal(accuracy, 0.03)
    labels, right = np.arange(IMAGES) % 4, generator.random(IMAGES) < skill + lean
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"label": labels, "prediction": np.where(right, labels, (labels + 1) % 4),
                  "confidence": generator.uniform(0.3, 1, IMAGES)}).to_parquet(path)
    return right


def write_confirmation(folder: Path, generator: np.random.Generator) -> dict[tuple[str, str], np.ndarray]:
    """Both arms' confirmations, each a stage of its own."""
    right = {}
    for name, arm in (("confirm_baseline-0", "baseline"), ("confirm-0", "distilled")):
        rows = []
        for index, configuration in enumerate(("default", "tuned")):
            runs = [index + 2 * seed for seed in range(SEEDS)]
            accuracy = ACCURACY[arm, configuration]
            right[arm, configuration] = np.stack(
                [write_test(folder / name / "runs" / f"{run:03d}" / "test.parquet", accuracy, generator)
                 for run in runs])
            rows.append({"arm": arm, "configuration": configuration, "parameters": parameters_of(arm, index),
                         "trial": index, "runs": runs})
        write_json(folder / name / "done.json", {"seconds": 3.0, "runs": 6, "seeds": [1, 2, 3], "rows": rows,
                                                 "model_parameters": 5000})
    return right


@pytest.fixture
def complete(tmp_path):
    return write_complete(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The same with its report, to be read only."""
    folder, right = write_complete(tmp_path_factory.mktemp("reported"))
    report.build(folder)
    return folder, right


def write_complete(home: Path) -> tuple[Path, dict[tuple[str, str], np.ndarray]]:
    """A finished study and, per arm and configuration, which test images each seed got right."""
    generator = np.random.default_rng(5)
    folder = write_study(home / "tiny", ("teacher", "baseline", "teacher_logits", "distill", "confirm_baseline",
                                             "confirm"))
    write_search(folder / "teacher-0", "baseline", {0: ([60, 80, 90, 95], "complete")},
                 {"seconds": 9.0, "trial": 0, "trials": 1, "parameters": {"lr": 1e-3}, "best_validation": 0.95,
                  "model_parameters": 20000, "model": "resnet18.a1_in1k", "kind": "CNN", "family": "ResNet"})
    for arm, trials in (("baseline", BASELINE), ("distill", DISTILL)):
        best, default = trials[1][0][-1] / 100, trials[0][0][-1] / 100
        write_search(folder / f"{arm}-0", arm, trials, {"seconds": 5.0, "trials": len(trials), "winner": 1,
                                                         "best_validation": best, "default_validation": default,
                                                         "kind": "Transformer", "family": "VisionTransformer"})
    write_json(folder / "teacher_logits-0" / "done.json", {"seconds": 1.0})
    right = {("teacher", "default"): write_test(folder / "teacher_logits-0" / "test.parquet", 0.95, generator)[None]}
    return folder, right | write_confirmation(folder, generator)


@pytest.fixture
def started(tmp_path):
    """A study of which only a part of the baseline's search has been recorded, the last line of it half."""
    folder = write_study(tmp_path / "tiny", ("baseline", "distill"))
    write_search(folder / "baseline-0", "baseline", {0: BASELINE[0], 1: ([35, 55], "continue")}, None)
    with open(folder / "baseline-0" / "record.jsonl", "a", encoding="utf-8") as record:
        record.write('{"sequence": 99, "event": "repo')
    return folder


def page_of(folder: Path) -> str:
    return (folder / "results" / "report.html").read_text(encoding="utf-8")


def built(folder: Path, name: str) -> str:
    report.build(folder)
    return (folder / "results" / name).read_text(encoding="utf-8")


def own_part(page: str) -> str:
    """The page without plotly.js."""
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def drawn(page: str) -> dict[str, list[dict]]:
    """The traces that the page carries, by figure."""
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', own_part(page), re.DOTALL)
    assert "<" not in data.group(1)  # no text can end the element
    return {figure["name"]: figure["wide"]["data"] for figure in json.loads(data.group(1))["figures"]}


def crossed_interval(difference: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a two-way analysis of variance with both factors random, by its textbook mean squares."""
    seeds, images = difference.shape
    grand = difference.mean()
    of_seeds = images * sum((row.mean() - grand) ** 2 for row in difference) / (seeds - 1)
    of_images = seeds * sum((column.mean() - grand) ** 2 for column in difference.T) / (images - 1)
    total = ((difference - grand) ** 2).sum()
    freedoms = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    residual = (total - of_seeds * freedoms[0] - of_images * freedoms[1]) / freedoms[2]
    variance = of_seeds + of_images - residual
    assert variance > max(of_seeds, of_images)  # else the floor would count, which this leaves out
    parts = zip((of_seeds, of_images, residual), freedoms, strict=True)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    own = stats.t.interval(0.95, freedom, grand, np.sqrt(variance / (seeds * images)))
    of_seeds_alone = stats.ttest_1samp(difference.mean(1), 0).confidence_interval()
    return max(own, tuple(of_seeds_alone), key=lambda interval: interval[1] - interval[0])


def test_accuracies_and_gains_are_those_of_the_predictions(reported):
    folder, right = reported
    outcome = results_of(folder)
    rows = {(row["arm"], row["configuration"]): row for row in outcome["rows"]}
    assert set(rows) == set(right)
    for key, correct in right.items():
        assert rows[key]["test_mean"] == pytest.approx(100 * correct.mean())
    difference = 100.0 * right["distilled", "tuned"] - 100.0 * right["baseline", "tuned"]
    seeds_only = stats.ttest_1samp(difference.mean(1), 0)
    gain = rows["distilled", "tuned"]["gain"]
    assert outcome["gain"] == gain
    assert gain["mean"] == pytest.approx(difference.mean())
    assert gain["seeds_only"]["p"] == pytest.approx(seeds_only.pvalue)
    assert [gain["seeds_only"][end] for end in ("low", "high")] == pytest.approx(list(seeds_only.confidence_interval()))
    assert [gain["low"], gain["high"]] == pytest.approx(crossed_interval(difference))
    teacher, baseline = right["teacher", "default"].mean(), right["baseline", "tuned"].mean()
    assert rows["distilled", "tuned"]["gap_closed"] == pytest.approx(difference.mean() / 100 / (teacher - baseline))


def test_tables_hold_every_trial_and_report(reported):
    folder, _ = reported
    trials, curves = (pd.read_csv(folder / "results" / f"{name}.csv") for name in ("trials", "curves"))
    counts = trials["stage"].value_counts().to_dict()
    assert counts == {"teacher": 1, "baseline": len(BASELINE), "distill": len(DISTILL)}
    assert trials[trials["stage"] == "distill"]["ended"].tolist() == 3 * ["complete"] + 2 * ["stopped"] + ["failed"]
    reports = sum(len(percents) for trials in (BASELINE, DISTILL) for percents, _ in trials.values())
    assert len(curves) == reports + 4
    assert "| distilled | tuned" in (folder / "results" / "results.md").read_text(encoding="utf-8")


def test_page_says_the_verdict_and_shows_the_table(reported):
    folder, _ = reported
    page, outcome = own_part(page_of(folder)), results_of(folder)
    assert outcome["verdict"].startswith("Distillation helps")
    assert html.escape(outcome["verdict"]) in page and html.escape(outcome["scope"]) in page
    assert page.count("<tr class=main>") == 1
    assert f"{outcome['rows'][-1]['test_mean']:.2f}" in page
    assert "optimistic" in page
    assert "distill: under way" not in page


def test_page_loads_nothing(reported):
    page = own_part(page_of(reported[0]))
    assert not re.findall(r"https?:|<link|\bsrc=(?!x )|\bhref=(?!\"#)|url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_text_from_the_study_is_escaped(reported):
    page = page_of(reported[0])
    assert INJECTION not in own_part(page)
    assert f"<p>{html.escape(INJECTION)} &amp; more</p>" in page
    texts = json.dumps(drawn(page))
    assert "<img" not in texts and "&lt;img" in texts
    assert "<img" not in own_part(page)


def test_building_again_changes_nothing(complete):
    folder, _ = complete
    assert report.build(folder)
    before = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    assert not report.build(folder)
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before
    assert set(before) == {"results.json", "results.md", "trials.csv", "curves.csv", "classes.csv", "sensitivity.json",
                           "report.html"}
    shutil.rmtree(folder / "results")
    LATEST.clear()  # as in another process: the surface is fitted anew
    assert report.build(folder)
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before


def test_a_change_of_the_record_changes_the_page(started):
    assert report.build(started)
    write_search(started / "distill-0", "distill", DISTILL, None)
    assert report.build(started)
    assert not report.build(started)


def test_a_study_that_has_just_begun_has_a_page(started):
    page = built(started, "report.html")
    assert json.loads((started / "results" / "results.json").read_text(encoding="utf-8"))["rows"] == []
    assert "No verdict yet" in page
    assert "baseline: under way" in page and "distill: to come" in page
    assert "No distillation trial has reported yet." in page
    assert "2 trials: 1 at the full budget, 1 running." in page
    assert set(drawn(page)) == {"curves-baseline", "history", "slices"}


def test_learning_curves_show_each_trial_and_the_winner(complete):
    figure = learning_curves.learning_curves(StudyFiles(complete[0]), "distill")
    assert len(figure.data) == len(DISTILL)
    assert sorted(trace.y for trace in figure.data) == sorted(tuple(percents) for percents, _ in DISTILL.values())
    winner = max(figure.data, key=lambda trace: trace.line.width)
    assert winner.name == "winner: trial 1" and winner.y[-1] == 78
    assert [shape.x0 for shape in figure.layout.shapes] == [4, 2]
    failed = next(trace for trace in figure.data if trace.name == "failed")
    assert failed.marker.symbol == "x"


def test_best_so_far_counts_the_full_budget_alone(complete):
    figure = trial_panels.optimisation_history(StudyFiles(complete[0]))
    lines = [trace for trace in figure.data if trace.legendgroup == "best" and not trace.showlegend]
    assert [trace.y for trace in lines] == [(62, 70, 70), (66, 78, 78, 78)]


def test_stopped_and_complete_trials_have_axes_of_their_own(complete):
    figure = trial_panels.slices(StudyFiles(complete[0]))
    axes = {group: {trace.yaxis for trace in figure.data if trace.legendgroup == group and not trace.showlegend}
            for group in ("distill", "stopped")}
    assert axes["distill"] and axes["stopped"] and not axes["distill"] & axes["stopped"]
    winners = [trace for trace in figure.data if trace.legendgroup == "leader" and trace.x != (None,)]
    assert [(trace.xaxis, trace.x, trace.y) for trace in winners] == [
        ("x", (2.0,), (78,)), ("x2", (0.9,), (78,)), ("x3", (2e-3,), (70,)), ("x3", (2e-3,), (78,))]


def test_ticks_of_log_axes_are_plain():
    assert style.parameter_axis({"log": [3e-4, 1e-2]})["ticktext"] == ["3e-4", "1e-3", "3e-3", "1e-2"]
    assert style.parameter_axis({"log": [1, 16]})["ticktext"] == ["1", "2", "4", "8", "16"]
    assert style.parameter_axis({"log": [2e-3, 2.5e-3]})["ticktext"] == ["2e-3", "2.5e-3"]
    assert style.parameter_axis({"choice": ["adamw", "sgd"]})["ticktext"] == ["adamw", "sgd"]


def test_figures_without_data_are_none(tmp_path):
    study = StudyFiles(write_study(tmp_path / "tiny", ()))
    assert learning_curves.learning_curves(study, "distill") is None and learning_curves.teacher_curve(study) is None
    assert trial_panels.optimisation_history(study) is None and trial_panels.slices(study) is None
    assert gain.gain_intervals({"rows": []}) is None


def test_report_needs_neither_ray_nor_torch(started):
    code = ("import sys; from pathlib import Path; from kdstudy.analysis import report\n"
            "report.build(Path(sys.argv[1]))\n"
            "print(sorted({'ray', 'torch', 'kdstudy.study', 'kdstudy.trainables'} & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code, str(started)], cwd=Path(__file__).parent.parent,
                         capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
    assert (started / "results" / "report.html").exists()


def test_rows_of_a_confirmation_wait_for_searches_and_seeds_that_fit_them(complete):
    folder, _ = complete
    done = folder / "confirm_baseline-0" / "done.json"
    content = json.loads(done.read_text())
    shorter = [{**row, "runs": row["runs"][:-1]} for row in content["rows"]]
    write_json(done, content | {"rows": shorter})
    assert "No verdict yet" in results(StudyFiles(folder))["verdict"]
    write_json(done, content)
    (folder / "baseline-0" / "done.json").unlink()
    assert "No verdict yet" in results(StudyFiles(folder))["verdict"]


def test_takeaways_put_studies_side_by_side_with_what_was_published(complete, tmp_path):
    folder, right = complete
    first = results(StudyFiles(folder))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    description = json.loads((other / "stages.json").read_text())
    write_json(other / "stages.json", description | {"name": "other"})
    write_json(other / "teacher-0" / "done.json",
               json.loads((other / "teacher-0" / "done.json").read_text()) | {"family": "VisionTransformer"})
    settings = (other / "study.toml").read_text()
    (other / "study.toml").write_text(settings.replace("[teacher]", "[teacher]\npretrained = 'weights.pth'"))
    table = tables.takeaways([first, results(StudyFiles(other))])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["tiny", "other"]
    assert rows[1][1] == "resnet18 (0.02 M, pretrained) → tiny_vit (0.01 M)"
    assert rows[0][1] == "resnet18 (0.02 M) → tiny_vit (0.01 M)"
    means = {key: 100 * correct.mean() for key, correct in right.items()}
    assert rows[0][2] == f"{means['teacher', 'default']:.2f}"
    assert rows[0][3].startswith(f"{means['baseline', 'tuned']:.2f} ± ")
    at_default = means["distilled", "default"] - means["baseline", "default"]
    assert rows[0][6].startswith(f"{at_default:+.2f} [".replace("-", "−"))
    assert rows[0][5].startswith(f"{means['distilled', 'tuned'] - means['baseline', 'tuned']:+.2f} [")
    notes = f"4 classes, 500 images, 32 px, {SEEDS} seeds; published for Large → Small: +1.34"
    assert table.endswith("\n\nPublished: single runs, best test epoch.\n")
    assert f"- tiny (CNN → Transformer; {notes}): " in table and f"- other (same architecture; {notes}): " in table
    # The sentence below the table leaves out the figures in it.
    claim, figures = first["verdict"].split(": ", 1)
    said = table.split("- other")[1]
    assert f"{notes}): {claim}." in said and figures.split(" (")[0] not in said.split("Caution")[0]


def test_the_terminals_table_breaks_no_number_and_no_word_at_80_columns(reported):
    outcome = results_of(reported[0])
    only = outcome["rows"][-2] | {"configuration": "only weight_decay, batch_size, warmup and optimizer tuned"}
    printed = io.StringIO()
    Console(file=printed, width=80).print(console_table({"rows": [*outcome["rows"], only]}))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for row in outcome["rows"]:
        if row["gain"]:
            line = next(line for line in lines if f"{row['test_mean']:.2f} ± {row['test_sd']:.2f}" in line)
            assert tables.gain_cell(row["gain"]) in line
            assert tables.show_hyperparameters(row, 2).replace(",", "") in line
    words = {word for line in lines for word in line.split()}
    assert {"distilled", "weight_decay,", "batch_size,", "warmup", "optimizer", "tuned", "hyperparameters"} <= words


def test_one_block_of_a_readme_is_rewritten_and_the_rest_left_alone(reported, tmp_path):
    outcome = results_of(reported[0])
    begin, end = tables.readme_markers("tiny")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nwhat stood here\n{end}\nafter\n")
    assert tables.rewrite_block(readme, "tiny", tables.markdown(outcome))
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n| model |") and text.endswith(f"{end}\nafter\n")
    assert "stood here" not in text
    assert not tables.rewrite_block(readme, "tiny", tables.markdown(outcome))
    with pytest.raises(ValueError, match="add the lines <!-- kdstudy results: other -->"):
        tables.rewrite_block(readme, "other", "")


def test_duplicates_between_train_and_test_are_said(complete):
    folder, _ = complete
    description = json.loads((folder / "stages.json").read_text())
    description["data"] |= {"duplicates": {"train_test": 10}, "dropped": 0}
    write_json(folder / "stages.json", description)
    assert "10 of the training images are among the test images too." in built(folder, "results.md")
    description["data"]["dropped"] = 10
    write_json(folder / "stages.json", description)
    assert "among the test images" not in built(folder, "results.md")

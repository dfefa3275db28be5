"""What stands beside the gain, and the cards and pages that say it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report import SEEDS, built, complete, drawn, write_json  # noqa: F401, complete is a fixture

from kdstudy.analysis import comparison, report
from kdstudy.analysis.cautions import cautions
from kdstudy.analysis.outcome import results
from kdstudy.analysis.page.cards import cards
from kdstudy.analysis.predictions import calibration
from kdstudy.analysis.study_files import StudyFiles


def outcome_of(folder):
    """The content of results.json."""
    return results(StudyFiles(folder))


def cards_of(folder):
    return {card.title: card for card in cards(outcome_of(folder), calibration(StudyFiles(folder)))}


@pytest.fixture
def with_only(complete):  # noqa: F811
    """The finished study with a third distilled configuration, whose predictions are those of the default one."""
    folder, right = complete
    done = folder / "confirm-0" / "done.json"
    content = json.loads(done.read_text())
    first = content["rows"][0]
    runs = [100 + seed for seed in range(SEEDS)]
    for run, source in zip(runs, first["runs"], strict=True):
        shutil.copytree(folder / "confirm-0" / "runs" / f"{source:03d}", folder / "confirm-0" / "runs" / f"{run:03d}")
    only = {**first, "configuration": "only lr tuned", "trial": None, "runs": runs}
    write_json(done, content | {"rows": [first, only, content["rows"][1]]})
    return folder, right


def test_tuning_temperature_and_alpha_is_told_from_tuning_the_learning_rate(with_only):
    folder, right = with_only
    only = outcome_of(folder)["evidence"]["only"]
    tuned, default, baseline = (right[key].astype(float) for key in (
        ("distilled", "tuned"), ("distilled", "default"), ("baseline", "tuned")))
    assert only["gain"]["mean"] == pytest.approx(100 * (default - baseline).mean())
    assert only["rest"]["mean"] == pytest.approx(100 * (tuned - default).mean())
    card = cards_of(folder)["What tuning T and α adds"]
    assert card.figure == f"{only['rest']['mean']:+.2f} points" and "With only lr tuned" in card.text
    assert "distilled | only lr tuned: T 4, α 0.5" in built(folder, "results.md")


def test_both_arms_are_compared_at_the_default_point(complete):  # noqa: F811
    folder, right = complete
    outcome = outcome_of(folder)
    wanted = 100 * (right["distilled", "default"].mean() - right["baseline", "default"].mean())
    assert outcome["evidence"]["default"]["mean"] == pytest.approx(wanted)


def test_a_weak_teacher_and_a_better_default_baseline_are_said(complete):  # noqa: F811
    folder, right = complete
    assert "the teacher itself" not in outcome_of(folder)["verdict"]
    predictions = folder / "teacher_logits-0" / "test.parquet"
    table = pd.read_parquet(predictions)
    table.loc[table.index[:150], "prediction"] = (table["label"] + 1) % 4
    table.to_parquet(predictions)
    worse = 100 * (right["baseline", "tuned"].mean() - (table["label"] == table["prediction"]).mean())
    outcome = outcome_of(folder)
    assert outcome["verdict"].endswith(f"is {worse:.2f} points worse than the tuned baseline.")
    assert "default point" not in outcome["verdict"]
    over = {"mean": 1.0, "low": -1.0, "high": 3.0, "p": 0.3, "comparisons": 2}
    said = cautions(StudyFiles(folder), outcome | {"gain_over_default_baseline": over}, [], {})
    assert said[1] == ("no gain is shown over the baseline at its default point: +1.00 points (simultaneous 95 % "
                       "interval −1.00 to +3.00)")


def test_the_exported_student_and_its_twin_are_compared_image_by_image(complete):  # noqa: F811
    folder, right = complete
    exported = outcome_of(folder)["evidence"]["exported"]
    student, baseline = right["distilled", "tuned"][0], right["baseline", "tuned"][0]
    alone = int((student & ~baseline).sum()), int((baseline & ~student).sum())
    assert (exported["only_student"], exported["only_baseline"]) == alone
    # Exact McNemar: twice the smaller tail of a fair coin.
    assert exported["p"] == pytest.approx(min(1, 2 * stats.binom.cdf(min(alone), sum(alone), 0.5)))
    assert f"{alone[0]} are right in the first alone and {alone[1]}" in cards_of(folder)["The exported weights"].text


def test_the_value_that_won_stands_beside_what_fresh_seeds_gave(complete):  # noqa: F811
    folder, _ = complete
    again = [0.70, 0.74, 0.72]
    rows = json.loads((folder / "confirm-0" / "done.json").read_text())["rows"]
    lines = []
    for run, value in zip(rows[1]["runs"], again, strict=True):
        lines += [{"event": "trial", "trial": run, "parameters": rows[1]["parameters"], "seed": run, "view_seed": run,
                   "origin": "confirm", "protected": True, "label": "distilled tuned"},
                  {"event": "report", "trial": run, "epoch": 8, "decision": "complete", "reason": None,
                   "metrics": {"validation_accuracy": value, "validation_loss": 1.0}}]
    (folder / "confirm-0" / "record.jsonl").write_text(
        "\n".join(json.dumps({"sequence": index, "time": 0.0, **line}) for index, line in enumerate(lines)) + "\n")
    selected = outcome_of(folder)["evidence"]["selected"]["distilled"]
    assert (selected["selected"], selected["trials"], selected["full"]) == (78, 6, 3)
    assert selected["retrained"] == pytest.approx(72) and selected["seeds"] == 3
    assert cards_of(folder)["The winner’s luck"].figure == "78.0 → 72.0 %"


def test_one_seed_has_no_cards_and_no_bare_gain(complete):  # noqa: F811
    folder, _ = complete
    for name in ("confirm_baseline-0", "confirm-0"):
        done = folder / name / "done.json"
        content = json.loads(done.read_text())
        write_json(done, content | {"rows": [{**row, "runs": row["runs"][:1]} for row in content["rows"]]})
    outcome = outcome_of(folder)
    assert cards(outcome, None) == [] and outcome["evidence"]["only"] is None
    page = built(folder, "report.html")
    assert "class=card" not in page and "classes" not in drawn(page)
    assert "This needs the confirmation on at least two seeds" in page


def test_classes_are_listed_with_what_they_gain(complete):  # noqa: F811
    folder, right = complete
    report.build(folder)
    classes = pd.read_csv(folder / "results" / "classes.csv")
    mine = np.arange(right["distilled", "tuned"].shape[1]) % 4 == 1
    gain = 100 * (right["distilled", "tuned"][:, mine].mean() - right["baseline", "tuned"][:, mine].mean())
    assert classes.loc[1, "gain"] == pytest.approx(gain) and classes.loc[1, "images"] == mine.sum()


def test_several_studies_stand_on_one_page(complete, tmp_path):  # noqa: F811
    folder, _ = complete
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    write_json(other / "stages.json", json.loads((other / "stages.json").read_text()) | {"name": "second <b>study"})
    for one in (folder, other):
        report.build(one)
    outcomes = [outcome_of(folder), outcome_of(other)]
    comparison.build([folder, other], tmp_path / "comparison.html")
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "second &lt;b&gt;study" in page and "second <b>study" not in page
    assert 'href="tiny/results/report.html"' in page and 'href="other/results/report.html"' in page
    (tuned,) = [trace for trace in drawn(page)["gains"] if trace["name"] == "tuned"]
    assert tuned["x"] == pytest.approx([outcome["gain"]["mean"] for outcome in outcomes], rel=1e-3)
    assert tuned["y"][0] > tuned["y"][1]  # from top to bottom

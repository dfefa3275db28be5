"""Per-example results of a confirmed study against numbers that are computed another way."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdstudy.analysis.predictions import ARMS, calibration, per_class, teacher_agreement
from kdstudy.analysis.study_files import StudyFiles

CLASSES, PER_CLASS, SEEDS = ["apple", "bear", "cup"], 60, 4
STAGES = ("baseline", "teacher_logits", "distill", "confirm_baseline", "confirm")
RATES = {"teacher": (0.95, 0.8, 0.6), "baseline": (0.8, 0.6, 0.5), "distilled": (0.8, 0.9, 0.55)}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class Study:
    """A confirmed study of made-up answers; its files can be taken away or changed."""

    def __init__(self, folder, seeds=SEEDS, confidence=True, labels=None):
        self.folder, self.seeds, self.confidence = folder, seeds, confidence
        self.labels = np.tile(np.arange(3), PER_CLASS) if labels is None else labels
        self.rng, self.answers = np.random.default_rng(0), {}
        (folder / "study.toml").write_text("")
        write_json(folder / "stages.json", {"data": {"classes": CLASSES}, "stages": {name: name for name in STAGES}})
        for name in ("baseline", "distill", "teacher_logits"):
            write_json(folder / name / "done.json", {})
        self.answers["teacher"] = [self.write("teacher_logits", RATES["teacher"])]
        self.confirm("confirm_baseline", "baseline", ("default", "tuned"))
        self.confirm("confirm", "distilled", ("default", "tuned", "only lr tuned"))

    def confirm(self, stage, arm, configurations):
        """The tuned runs have the arm's rates; the others are all but always wrong."""
        rows = []
        for index, configuration in enumerate(configurations):
            runs = [index + len(configurations) * seed for seed in range(self.seeds)]
            rates = RATES[arm] if configuration == "tuned" else (0.05, 0.05, 0.05)
            written = [self.write(f"{stage}/runs/{run:03d}", rates) for run in runs]
            self.answers[arm] = written if configuration == "tuned" else self.answers.get(arm)
            rows.append({"arm": arm, "configuration": configuration, "parameters": {}, "trial": 0, "runs": runs})
        write_json(self.folder / stage / "done.json", {"rows": rows, "model_parameters": 1})

    def write(self, place, rates):
        right = self.rng.random(len(self.labels)) < np.array(rates)[self.labels]
        predictions = np.where(right, self.labels, (self.labels + 1) % 3)
        answers = pd.DataFrame({"label": self.labels, "prediction": predictions})
        if self.confidence:
            answers["confidence"] = self.rng.uniform(0.34, 1, len(answers)).astype(np.float32)
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        answers.to_parquet(self.folder / place / "test.parquet")
        return answers

    @property
    def files(self):
        return StudyFiles(self.folder)

    def correct(self, arm):
        return np.stack([answers["label"] == answers["prediction"] for answers in self.answers[arm]])


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def anova_interval(differences):
    """95 %, by the textbook mean squares of two crossed random factors; or over the seeds alone if that is wider."""
    seeds, images = differences.shape
    grand = differences.mean()
    of_seeds = images * ((differences.mean(1) - grand) ** 2).sum() / (seeds - 1)
    of_images = seeds * ((differences.mean(0) - grand) ** 2).sum() / (images - 1)
    freedoms = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    rest = ((differences - grand) ** 2).sum() - of_seeds * freedoms[0] - of_images * freedoms[1]
    squares = np.array([of_seeds, of_images, rest / freedoms[2]])
    total = max(of_seeds + of_images - squares[2], of_seeds, of_images)
    half = stats.t.ppf(0.975, total**2 / (squares**2 / freedoms).sum()) * np.sqrt(total / (seeds * images))
    over_seeds = stats.ttest_1samp(differences.mean(1), 0).confidence_interval()
    return min(grand - half, over_seeds.low), max(grand + half, over_seeds.high)


def test_each_class_has_its_own_accuracies_and_interval(study):
    table = per_class(study.files)
    assert list(table["name"]) == CLASSES and list(table["images"]) == [PER_CLASS] * 3
    right = {arm: 100.0 * study.correct(arm) for arm in RATES}
    for index, row in table.iterrows():
        mine = study.labels == index
        for arm in RATES:
            assert row[arm] == pytest.approx(right[arm][:, mine].mean())
        difference = right["distilled"][:, mine] - right["baseline"][:, mine]
        assert row["gain"] == pytest.approx(difference.mean())
        assert (row["low"], row["high"]) == pytest.approx(anova_interval(difference))
        assert (row["p"] < 0.05) == (row["low"] > 0 or row["high"] < 0)
    assert table["gain"].mean() == pytest.approx((right["distilled"] - right["baseline"]).mean())
    assert table["p"].idxmin() == 1 and table.loc[1, "p"] < 0.01  # the one class whose rate was raised much


def test_the_classes_p_values_are_adjusted_after_benjamini_and_hochberg(study):
    table = per_class(study.files).sort_values("p", ascending=False)
    expected, smallest = [], 1.0
    for rank, p in zip((3, 2, 1), table["p"], strict=True):
        smallest = min(smallest, p * 3 / rank)
        expected.append(smallest)
    assert list(table["p_adjusted"]) == pytest.approx(expected)
    assert (table["p_adjusted"] > table["p"]).any()


def test_one_seed_has_accuracies_and_no_gain(tmp_path):
    table = per_class(Study(tmp_path, seeds=1).files)
    assert table[["teacher", "baseline", "distilled"]].notna().all(axis=None)
    assert table[["gain", "low", "high", "p", "p_adjusted"]].isna().all(axis=None)


def test_a_class_of_one_image_or_none_or_without_any_difference_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setitem(RATES, "baseline", (1.0, 0.6, 0.5))
    monkeypatch.setitem(RATES, "distilled", (1.0, 0.9, 0.5))
    table = per_class(Study(tmp_path, labels=np.array([0] * 20 + [1] * 20 + [2])).files)
    assert list(table["images"]) == [20, 20, 1]
    assert table["gain"].notna().all() and table.loc[0, "gain"] == 0
    for column in ("low", "high", "p", "p_adjusted"):
        assert list(table[column].notna()) == [False, True, False]
    study = Study(tmp_path, labels=np.array([0] * 20 + [1] * 20))
    assert per_class(study.files).loc[2, ["images", "teacher", "baseline"]].fillna(-1).tolist() == [0, -1, -1]


def test_agreement_is_counted_where_the_teacher_is_right_and_where_it_is_wrong(study):
    table = teacher_agreement(study.files)
    assert list(zip(table["arm"], table["teacher"], strict=True)) == [
        ("baseline", "right"), ("baseline", "wrong"), ("distilled", "right"), ("distilled", "wrong")]
    teacher = study.answers["teacher"][0]
    for row in table.itertuples():
        chosen = (teacher["prediction"] == teacher["label"]) == (row.teacher == "right")
        runs, theirs = [answers[chosen] for answers in study.answers[row.arm]], list(teacher["prediction"][chosen])
        same = [100 * sum(a == b for a, b in zip(run["prediction"], theirs, strict=True)) / len(run) for run in runs]
        right = [100 * (run["prediction"] == run["label"]).mean() for run in runs]
        assert row.images == chosen.sum() > 0
        assert (row.agreement, row.agreement_sd) == pytest.approx((np.mean(same), np.std(same, ddof=1)))
        assert (row.accuracy, row.accuracy_sd) == pytest.approx((np.mean(right), np.std(right, ddof=1)))
    assert (table["agreement"] == table["accuracy"]).tolist() == [True, False, True, False]


def test_a_perfect_teacher_and_one_seed_leave_nan_and_no_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(RATES, "teacher", (1.0, 1.0, 1.0))
    table = teacher_agreement(Study(tmp_path, seeds=1).files)
    assert table["images"].tolist() == [3 * PER_CLASS, 0] * 2
    assert table["agreement"].notna().tolist() == [True, False] * 2
    assert table["agreement_sd"].isna().all()
    assert not recwarn.list


def test_calibration_is_guos_sum_over_the_bins(study):
    """Each run's error by a plain loop over (low, high]; the bins pool an arm's runs."""
    result = calibration(study.files, bins=7)
    assert list(result.errors["arm"]) == ["teacher", *ARMS] and result.errors["runs"].tolist() == [1, SEEDS, SEEDS]
    for row in result.errors.itertuples():
        errors, over = [], []
        for answers in study.answers[row.arm]:
            confidence, right = answers["confidence"].astype(float), answers["label"] == answers["prediction"]
            total = 0.0
            for index in range(7):
                inside = (confidence > index / 7) & (confidence <= (index + 1) / 7)
                if inside.any():
                    total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            errors.append(100 * total)
            over.append(100 * (confidence.mean() - right.mean()))
        assert row.error == pytest.approx(np.mean(errors)) and row.overconfidence == pytest.approx(np.mean(over))
        assert len(errors) == 1 or row.error_sd == pytest.approx(np.std(errors, ddof=1))
        bins = result.bins[result.bins["arm"] == row.arm]
        assert len(bins) == 7 and bins["count"].sum() == len(errors) * len(study.labels)
        full = bins[bins["count"] > 0]
        assert 0 < len(full) < 7 and bins["accuracy"].isna().sum() == 7 - len(full)
        assert (full["count"] * full["accuracy"]).sum() == pytest.approx(100 * study.correct(row.arm).sum())
        assert full["confidence"].between(full["low"], full["high"]).all()
    assert result.errors["error_sd"].isna().tolist() == [True, False, False]


def test_a_confidence_on_a_bins_upper_bound_belongs_to_it(tmp_path):
    study = Study(tmp_path, seeds=1, labels=np.array([0, 0, 1, 1]))
    path = tmp_path / "confirm" / "runs" / "001" / "test.parquet"
    pd.DataFrame({"label": [0, 0, 1, 1], "prediction": [0, 1, 1, 1],
                  "confidence": np.array([0.5, 0.5, 0.75, 1.0], np.float32)}).to_parquet(path)
    result = calibration(study.files, bins=4)
    mine = result.bins[result.bins["arm"] == "distilled"]
    assert mine["count"].tolist() == [0, 2, 1, 1]
    assert mine["accuracy"].tolist()[1:] == [50, 100, 100]
    error = result.errors.set_index("arm").loc["distilled"]
    assert error["error"] == pytest.approx(25 / 4)  # 0 in the second bin, 25 in the third, 0 in the fourth
    assert error["overconfidence"] == pytest.approx(100 * (2.75 - 3) / 4)


def test_a_model_that_knows_how_sure_it_may_be_is_calibrated(tmp_path):
    """Right with exactly the probability it states: no over-confidence, and as small an error as chance allows."""
    rng, labels = np.random.default_rng(0), np.zeros(20000, int)
    study = Study(tmp_path, seeds=2, labels=labels)
    for stage, sure in (("confirm_baseline", 0.0), ("confirm", 0.15)):
        for run in study.files.done(stage)["rows"][1]["runs"]:
            truth = rng.uniform(0.3, 0.85, len(labels))
            pd.DataFrame({"label": labels, "prediction": np.where(rng.random(len(labels)) < truth, 0, 1),
                          "confidence": truth + sure}).to_parquet(
                tmp_path / stage / "runs" / f"{run:03d}" / "test.parquet")
    errors = calibration(study.files).errors.set_index("arm")
    assert errors.loc["baseline", "error"] < 1.5 and abs(errors.loc["baseline", "overconfidence"]) < 1
    assert errors.loc["distilled", ["error", "overconfidence"]].tolist() == pytest.approx([15, 15], abs=1)


def test_without_confidences_there_is_no_calibration_and_all_the_rest(tmp_path):
    study = Study(tmp_path, confidence=False)
    assert calibration(study.files) is None
    assert len(per_class(study.files)) == 3 and len(teacher_agreement(study.files)) == 4


def test_a_teacher_that_was_not_tested_is_left_out(study):
    (study.folder / "teacher_logits" / "test.parquet").unlink()
    table = per_class(study.files)
    assert table["teacher"].isna().all() and table["p"].notna().all()
    assert teacher_agreement(study.files).empty
    assert list(calibration(study.files).errors["arm"]) == list(ARMS)


def test_runs_on_other_images_are_not_compared_image_by_image(study):
    path = study.folder / "confirm" / "runs" / "001" / "test.parquet"
    answers = pd.read_parquet(path)
    answers.iloc[::-1].to_parquet(path)
    assert per_class(study.files).empty and teacher_agreement(study.files).empty
    assert calibration(study.files) is not None


@pytest.mark.parametrize("missing", ["confirm", "confirm_baseline", "distill"])
def test_an_unfinished_study_has_no_examples(study, missing):
    (study.folder / missing / "done.json").unlink()
    assert per_class(study.files).empty and teacher_agreement(study.files).empty
    assert calibration(study.files) is None

"""Series of studies: a list for one setting, one folder, one curve of the gain."""

import json
import os
import re
import shutil
import signal
import subprocess

import browser as driver
import numpy as np
import pytest
from browser import NARROW, Browser
from known_nulls import NULLS, draw, false_trends, lift_for
from running import KDSTUDY, kdstudy, results_of, wait_until, with_set
from synthetic import here, is_one_line, write_finished

import kdstudy as api
from kdstudy.analysis import series as pages
from kdstudy.analysis.significance import crossed_interval
from kdstudy.analysis.trend import slope, weights
from kdstudy.config.load import load_series, load_study
from kdstudy.errors import UserError
from kdstudy.store.files import StudyLock
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.study import Study

# -- settings ---------------------------------------------------------------------------------------------------------


def test_each_member_is_the_study_that_its_value_alone_would_give():
    for setting, values in (("train.epochs", [75, 150]), ("teacher.epochs", [5, 10]),
                            ("data.student_images", [0.05, 200])):
        series = load_series("digits", (f"{setting}={values}", "search.trials=30"))
        assert [member.value for member in series.members] == values
        for member in series.members:
            alone = load_study("digits", (f"{setting}={member.value}", "search.trials=30"))
            assert member.name == f"{setting}={member.value}"
            assert member.config.to_values() | {"name": "digits"} == alone.to_values()


def test_a_list_may_stand_in_the_study_file_the_options_or_the_python_api(tmp_path):
    given = load_series("digits", ("train.epochs=[75, 150, 75]",))
    assert given.values == [75, 150] and given.name == "digits-train.epochs"
    (tmp_path / "digits.toml").write_text(given.to_toml())
    assert load_series(str(tmp_path / "digits.toml")) == given
    assert api.load("digits", train={"epochs": [75, 150]}) == given
    assert api.load(given, train={"epochs": 75}) == load_study("digits", ("train.epochs=75",))
    assert load_series("digits") is None


def test_smoke_shrinks_the_values_of_a_file_but_not_those_that_are_given_with_it(tmp_path):
    (tmp_path / "own.toml").write_text(load_series("digits", ("train.epochs=[100, 300]",)).to_toml())
    small = load_series(str(tmp_path / "own.toml"), smoke=True)
    assert small.values == [10, 30] and all(member.config.smoke for member in small.members)
    assert load_series("digits", ("train.epochs=[3, 6]",), smoke=True).values == [3, 6]


@pytest.mark.parametrize(("setting", "values", "expected"), [
    ("train.epochs", [20, 10], [3, 2]), ("data.student_images", [100, 400], [0.125, 0.5]),
    ("teacher.epochs", [4, 6], [2, 3])])
def test_smoke_leaves_a_series_a_series(tmp_path, setting, values, expected):
    """Each value alone would become the same: few epochs the fewest, a number of images one half."""
    (tmp_path / "own.toml").write_text(load_series("digits", (f"{setting}={values}",)).to_toml())
    assert load_series(str(tmp_path / "own.toml"), smoke=True).values == expected


@pytest.mark.parametrize(("settings", "said"), [
    (["train.epochs=[75]"], r"train\.epochs = \[75\]: .* at least two different values.* or the single value 75"),
    (["train.epochs=[75, 75]"], "at least two different values"), (["train.epochs=[]"], "at least two"),
    (["train.epochs=[75, 0]"], r"^train\.epochs = 0: must be at least 1"),
    (["train.epochs=[75, 'a']"], "needs numbers, not 'a'"), (["train.epochs=[75, true]"], "needs numbers, not True"),
    ([f"train.epochs=[75, 1{400 * '0'}]"], r"^train\.epochs = 10+…: must be at most"),
    (["train.epochs=[75, [80]]"], r"needs numbers, not \[80\]"), (["train.epochs=[75, nan]"], "needs numbers, not nan"),
    (["data.student_images=[0.1, 1.5]"], r"data\.student_images = 1\.5: must be at most 1"),
    (["train.epochs=[75, 150]", "teacher.epochs=[5, 10]"], r"train\.epochs and teacher\.epochs are both lists"),
    (["train.epochs=[5, 300]", "search.grace_period=10"], r"train\.epochs = 5 of the series: search\.grace_period"),
    ([f"train.epochs={list(range(1, 103))}"], "at most 100 studies"),
    (["teacher.epochs=[5, 10]", "teacher.model=", "teacher.logits=a"], "varies nothing: the teacher is given"),
])
def test_a_mistake_is_one_line_that_names_the_setting_or_the_member(settings, said):
    code, out, err = here("plan", "digits", *with_set(settings))
    assert code == 2 and is_one_line(err) and not out
    assert re.search(said, err.removeprefix("kdstudy: "))


# -- the slope --------------------------------------------------------------------------------------------------------


def predictions(rng, seeds=4, images=200, members=3):
    right = rng.random((2, members, seeds, images)) < 0.8
    return right[0], right[1]


def test_the_slope_is_that_of_the_least_squares_line_through_the_gains():
    own, baseline = predictions(np.random.default_rng(0))
    amounts = [75, 150, 600]
    gains = [100 * (one.mean() - other.mean()) for one, other in zip(own, baseline, strict=True)]
    found = slope(amounts, own, baseline)
    steepness, _ = np.polyfit(np.log2(amounts), gains, 1)
    assert found["mean"] == pytest.approx(steepness) and found["level"] == pytest.approx(np.mean(gains))
    assert found["low"] < found["mean"] < found["high"] and (found["seeds"], found["images"]) == (4, 200)


def test_of_two_studies_the_slope_is_the_difference_of_their_gains_with_its_interval():
    own, baseline = predictions(np.random.default_rng(1), members=2)
    found = slope([10, 40], own, baseline)  # two doublings
    differences = 100 * ((own[1] * 1.0 - baseline[1]) - (own[0] * 1.0 - baseline[0])) / 2
    expected = crossed_interval(differences, unit=100.0)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    swapped = slope([40, 10], own[::-1], baseline[::-1])
    assert swapped["low"] == pytest.approx(found["low"]) and swapped["p"] == pytest.approx(found["p"])


def test_a_baseline_that_all_studies_share_cancels():
    own, baseline = predictions(np.random.default_rng(2))
    same = [baseline[0]] * 3
    nothing = [np.zeros_like(baseline[0])] * 3
    assert slope([5, 10, 20], own, same)["high"] == pytest.approx(slope([5, 10, 20], own, nothing)["high"])


def test_no_slope_without_different_amounts():
    with pytest.raises(ValueError, match="two different amounts"):
        weights([75, 75])


@pytest.mark.parametrize("null", list(NULLS))
def test_equal_gains_are_rarely_called_a_trend(null):
    """At a nominal 5 %: with 400 simulations at most 8 % (standard error 1.1)."""
    assert false_trends(NULLS[null], 400, np.random.default_rng(3), seeds=5, images=360, studies=3) <= 0.08


def test_a_gain_that_falls_from_six_points_to_none_is_found():
    null, rng, found = NULLS["seeds and images"], np.random.default_rng(4), 0
    for _ in range(40):
        arms = [draw(null, 5, 2000, rng, arms=2, lift=lift_for(null, points)) for points in (6, 3, 0)]
        trend = slope([75, 150, 300], [arm[1] for arm in arms], [arm[0] for arm in arms])
        found += trend["high"] < 0
    assert found >= 36


# -- a series made by hand --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A series of two studies of models that were never trained, and a third that has not begun."""
    folder = tmp_path_factory.mktemp("series") / "made-up"
    folder.mkdir()
    settings = ("search.trials=3", "search.baseline_trials=3", "search.protected=1", "search.baseline_protected=1",
                "teacher.epochs=2", "confirm.seeds=2")
    (folder / "study.toml").write_text(
        load_series("digits", (*settings, "train.epochs=[6, 4, 16]"), smoke=True).to_toml())
    for epochs in (4, 6):
        write_finished(folder / f"train.epochs={epochs}", f"train.epochs={epochs}")
    return folder


@pytest.fixture
def serious(made_up, tmp_path):
    """A copy of it that draws conclusions."""
    folder = shutil.copytree(made_up, tmp_path / "serious")
    for path in folder.glob("*/study.toml"):
        path.write_text(path.read_text().replace("smoke = true", "smoke = false"))
    return folder


def test_status_has_a_line_for_each_member(made_up):
    code, out, _ = here("status", str(made_up))
    lines = out.splitlines()
    assert code == 0 and "2 of 3 studies done" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == [f"train.epochs={value}" for value in (6, 4, 16)]
    assert "not begun" in lines[-1]


def test_report_writes_the_members_reports_and_the_page_of_the_series(serious):
    code, out, err = here("report", str(serious))
    assert code == 0, err
    content = json.loads((serious / "results" / "series.json").read_text())
    assert [member["amount"] for member in content["members"]] == [4, 6]  # in order, whatever the list's
    for member in content["members"]:
        own = results_of(serious / member["folder"])
        assert member["gain"] == own["gain"] and member["verdict"] == own["verdict"]
    first, second = (member["gain"]["mean"] for member in content["members"])
    assert content["slope"]["mean"] == pytest.approx((second - first) / np.log2(6 / 4))
    assert content["sentence"] in " ".join(out.split()) and "is not shown to change" in content["sentence"]
    assert "Only 2 of the 3 studies are confirmed so far" in " ".join(content["caveats"])
    assert "with each doubling of its epochs (95 % interval" in content["sentence"]
    page = (serious / "results" / "series.html").read_text()
    assert 'href="../train.epochs%3D4/results/report.html"' in page and "not shown" in page
    assert not (serious.parent / "comparison.html").exists()


def test_a_trial_run_of_a_series_draws_no_conclusion(made_up):
    code, out, _ = here("report", str(made_up))
    assert code == 0 and "A trial run: the series works; its numbers say nothing." in out
    assert "doubling" not in out


def test_the_block_of_a_readme_is_rewritten(serious, tmp_path):
    readme, name = tmp_path / "README.md", "digits-smoke-train.epochs"
    readme.write_text(f"<!-- kdstudy results: {name} -->\n<!-- end of kdstudy results: {name} -->\n")
    for said in (f"rewrote {name}", "is up to date"):
        code, out, err = here("report", str(serious), "--readme", str(readme))
        assert code == 0 and said in out, err
    assert "| training epochs of the student |" in readme.read_text()
    (tmp_path / "other.md").write_text("nothing")
    code, _, err = here("report", str(serious), "--readme", str(tmp_path / "other.md"))
    assert code == 2 and is_one_line(err) and name in err


@pytest.mark.parametrize("setting", list(pages.WORDS))
def test_the_sentence_says_whether_the_gain_changes(setting):
    def said(mean, low, high, p):
        found = {"mean": mean, "low": low, "high": high, "p": p, "seeds": 5}
        members = [{"distilled": {"seeds": 5}}] * 3 + [{"distilled": None}]
        return pages.sentence({"smoke": False, "setting": setting, "slope": found, "why_not": "", "members": members})

    assert "the smaller the gain from distillation on average: −1.50 points" in said(-1.5, -2.5, -0.5, 0.01)
    assert "the larger the gain from distillation on average: +1.50 points" in said(1.5, 0.5, 2.5, 0.01)
    assert re.search(r"is not shown to change with the .*: \+0\.10 points .*; 3 studies on 5 paired seeds\)\.$",
                     said(0.1, -0.5, 0.7, 0.6))


def test_a_member_that_was_run_with_other_settings_is_left_out_or_named(serious, tmp_path):
    """`kdstudy run series/train.epochs=6 --set …` may have made another study of it."""
    path = serious / "train.epochs=6" / "study.toml"
    other = load_study(str(path.parent), ("search.parallel=3",)).to_toml()
    path.write_text(other)
    assert here("report", str(serious))[0] == 0
    content = json.loads((serious / "results" / "series.json").read_text())
    assert content["caveats"][0].startswith("The studies also differ in search.parallel, so")
    path.write_text(load_study(str(path.parent), ("train.epochs=50",)).to_toml())
    assert here("report", str(serious))[0] == 0
    content = json.loads((serious / "results" / "series.json").read_text())
    assert [member["amount"] for member in content["members"]] == [4] and content["slope"] is None
    assert content["caveats"][0] == "train.epochs=6 is left out: the study in it was run with train.epochs = 50."


def test_studies_without_common_seeds_or_test_images_have_no_slope(serious):
    done = next((serious / "train.epochs=4").glob("confirm-*/done.json"))
    done.write_text(json.dumps(json.loads(done.read_text()) | {"seeds": [7, 8]}))
    folders = {epochs: serious / f"train.epochs={epochs}" for epochs in (4, 6)}
    content = pages.results("any", "train.epochs", folders)
    assert content["slope"] is None and "share fewer than two seeds" in content["sentence"]


def test_commands_that_need_one_study_name_the_members(made_up, tmp_path):
    for words in (("export", str(made_up), str(tmp_path / "out")), ("pack", str(made_up), str(tmp_path / "out")),
                  ("train", "baseline", str(made_up)), ("run", str(made_up), "--set", "train.epochs=4"),
                  ("run", "digits", "--dir", str(made_up))):
        code, _, err = here(*words)
        assert code == 2 and is_one_line(err) and re.search("train.epochs=[46]", err), words
    code, _, err = here("pack", str(made_up / "train.epochs=4"), str(tmp_path / "packed"))
    assert code == 0, err


def test_a_series_is_not_written_over_something_else(made_up, tmp_path):
    study = made_up / "train.epochs=4"
    for folder, setting in ((study, "train.epochs=[4, 8]"), (made_up, "teacher.epochs=[4, 8]")):
        code, _, err = here("run", "digits", "--set", setting, "--dir", str(folder))
        assert code == 2 and is_one_line(err) and "name another" in err
    assert load_series(str(made_up)).values == [6, 4, 16]


def test_a_received_series_may_hold_no_link_and_name_no_function(made_up, tmp_path):
    folder = shutil.copytree(made_up, tmp_path / "received")
    (tmp_path / "outside").mkdir()
    (folder / "train.epochs=16").symlink_to(tmp_path / "outside")
    for words in (("report", str(folder)), ("status", str(folder)), ("run", str(folder))):
        code, _, err = here(*words)
        assert code == 2 and is_one_line(err) and "is a link" in err
    assert not list((tmp_path / "outside").iterdir())
    (folder / "train.epochs=16").unlink()
    (folder / "train.epochs=9" / "wandb").mkdir(parents=True)  # of a value that is no longer in the list
    (folder / "train.epochs=9" / "wandb" / "latest-run").symlink_to(tmp_path)
    assert here("status", str(folder))[0] == 0
    text = (folder / "study.toml").read_text()
    model = next(line for line in text.split("[student]")[1].splitlines() if line.startswith("model"))
    (folder / "study.toml").write_text(text.replace(model, 'model = "theirs.nets:tiny"'))
    for named in (folder, folder / "study.toml"):
        code, _, err = here("plan", str(named))
        assert code == 2 and is_one_line(err) and "names, not you, and its code would run" in err


def test_an_open_series_has_members_results_and_figures(serious, tmp_path):
    series = api.open(serious)
    assert sorted(series.members) == [4, 6] and series.members[4].settings.train.epochs == 4
    assert list(series.results["amount"]) == [4, 6] and series.results["gain_points"].notna().all()
    assert series.figures == ["gain", "accuracy"] and len(series.figure("gain").data) == 2
    assert "<table" in series._repr_html_() and series.verdict in series._repr_html_().replace("&#x27;", "'")
    with pytest.raises(KeyError, match="there is no figure 'nonsense'"):
        series.figure("nonsense")


def test_plan_counts_what_members_share_once(tmp_path):
    settings = ("train.epochs=[3, 6]", "search.trials=3", "search.protected=1")
    plan = api.plan(api.load("digits", smoke=True, train={"epochs": [3, 6]}), tmp_path / "series")
    teachers = plan[plan["stage"] == "teacher"]
    assert list(teachers["member"]) == ["train.epochs=3", "train.epochs=6"] and list(teachers["done"]) == [False, True]
    code, out, _ = here("plan", "digits", "--smoke", "--dir", str(tmp_path / "series"), *with_set(settings))
    assert code == 0 and "shared: teacher" in out and "left to do" in out
    epochs = api.plan(api.load("digits", smoke=True, teacher={"epochs": [2, 3]}), tmp_path / "other")
    shared = epochs[(epochs["member"] == "teacher.epochs=3") & epochs["done"]]["stage"]
    assert {"baseline", "confirm_baseline"} <= set(shared) and "teacher" not in set(shared)


@pytest.mark.skipif(driver.EXECUTABLE is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [1280, NARROW])
def test_the_page_looks_right(serious, width):
    assert here("report", str(serious))[0] == 0
    with Browser() as started, started.page(width) as page:
        page.open(serious / "results" / "series.html")
        assert page.evaluate("figureNames.length") == 2 and page.defects() == []


@pytest.mark.parametrize("target", [("slurm", "--dir", "/shared/series"), ("kuberay", "--dir", "s3://b/x",
                                                                           "--image", "any")])
def test_a_cluster_is_sent_the_settings_with_the_list(target):
    code, out, err = here("submit", "digits", "--print", "--to", *target, "--set", "train.epochs=[3, 6]")
    assert code == 0, err
    assert re.search(r"epochs = \[\s+3,\s+6,\s+\]", out) and "kdstudy-digits-train" in out


# -- a series that is run ---------------------------------------------------------------------------------------------

TINY = ["digits", "--smoke", "--dir", "series", *with_set([
    "search.trials=3", "search.protected=1", "search.baseline_trials=3", "search.baseline_protected=1",
    "resources.concurrent=1", "teacher.epochs=2"])]


def values(*epochs):
    return ["--set", f"train.epochs={list(epochs)}"]


def written(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("record.jsonl")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    printed = kdstudy("run", *TINY, *values(2, 4), cwd=home).stdout
    return home / "series", printed


@pytest.mark.slow
def test_one_command_runs_all_members_and_the_teacher_once(run):
    folder, printed = run
    assert "1 of 2: train.epochs=2" in printed and "2 of 2: train.epochs=4" in printed
    assert "A trial run: the series works" in printed and "series/results/series.html" in printed
    trained = {epochs: json.loads(next((folder / f"train.epochs={epochs}").glob("teacher-*/done.json")).read_text())
               for epochs in (2, 4)}
    assert "taken_from" not in trained[2] and trained[4]["taken_from"] == "train.epochs=2"
    assert trained[2]["weights"] == trained[4]["weights"]
    assert (folder / "results" / "series.html").exists()


@pytest.mark.slow
def test_the_members_have_the_fingerprints_of_single_studies(run):
    folder, _ = run
    settings = [word for word in TINY[4:] if word != "--set"]
    for epochs in (2, 4):
        alone = load_study("digits", (*settings, f"train.epochs={epochs}"), smoke=True)
        study = Study(alone, Storage(folder / f"train.epochs={epochs}"))
        assert all(stage.is_finished for stage in study.stages.values())


@pytest.mark.slow
def test_the_same_command_again_runs_nothing_and_another_value_its_member_alone(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "series")
    before = written(folder)
    _, again, _ = here("run", str(folder))
    assert "Nothing to do" in again and written(folder) == before
    more = kdstudy("run", *TINY, *values(2, 4, 3), "--until", "baseline", cwd=tmp_path).stdout
    now = written(folder)
    assert {name: now[name] for name in before} == before
    assert {name.split("/")[0] for name in set(now) - set(before)} == {"train.epochs=3"}
    assert "taken from train.epochs=2" in more
    code, out, _ = here("status", str(folder))
    assert code == 0 and "2 of 3 studies done" in out


@pytest.mark.slow
def test_a_series_that_is_killed_goes_on_from_its_record(run, tmp_path):
    folder, command = tmp_path / "series", [*KDSTUDY, "run", *TINY, *values(2, 4)]

    def reached(pattern):
        return any(len(Record(path, write=False).trials) > 1 for path in folder.glob(pattern))

    for number, pattern in ((signal.SIGKILL, "train.epochs=2/baseline-*/record.jsonl"),
                            (signal.SIGINT, "train.epochs=4/distill-*/record.jsonl")):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(process, lambda pattern=pattern: reached(pattern))
            os.kill(process.pid, number)
    kdstudy("run", *TINY, *values(2, 4), cwd=tmp_path)
    mine, theirs = (pages.results("any", "train.epochs", {epochs: series / f"train.epochs={epochs}"
                                                          for epochs in (2, 4)}) for series in (folder, run[0]))
    assert mine["slope"] == theirs["slope"] and mine["members"] == theirs["members"]


def test_a_member_that_cannot_run_does_not_keep_the_others_from_running(made_up, tmp_path, monkeypatch):
    folder, ran = shutil.copytree(made_up, tmp_path / "series"), []

    def run(study, *_, **__):
        ran.append(study.folder.name)
        if "epochs=6" in study.folder.name:
            raise UserError("train.epochs = 6 cannot be; choose another")
        return True

    monkeypatch.setattr("kdstudy.driver.run", run)
    code, out, err = here("run", str(folder))
    assert code == 2 and err == "kdstudy: train.epochs=6: train.epochs = 6 cannot be; choose another\n"
    assert ran == [f"train.epochs={epochs}" for epochs in (6, 4, 16)] and "train.epochs=6 cannot run" in out
    monkeypatch.setattr("kdstudy.driver.run", lambda study, *_, **__: ran.append("") or run_into("no address"))
    assert here("run", str(folder))[0] == 2 and len(ran) == 5  # what concerns all is said twice at most


def run_into(problem):
    raise UserError(problem)


def test_a_member_with_too_few_images_is_named_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"^data\.student_images=\S+ of the series: "):
        api.run(api.load("digits", smoke=True, data={"student_images": [0.5, 0.0001]}), tmp_path / "series")
    assert not list(tmp_path.glob("series/*/stages.json"))


def test_a_series_has_one_driver_at_a_time_and_only_that_one_writes_its_settings(made_up, tmp_path):
    folder = shutil.copytree(made_up, tmp_path / "series")
    with StudyLock(folder):
        code, _, err = here("run", str(folder), "--set", "train.epochs=[4, 8]")
    assert code == 2 and is_one_line(err) and "is in use by process" in err
    assert load_series(str(folder)).values == [6, 4, 16]


@pytest.mark.slow
def test_a_member_with_damaged_files_does_not_keep_the_others_from_running(run, tmp_path):
    """Not even where it is the page of the series that reads them first."""
    folder = shutil.copytree(run[0], tmp_path / "series")
    path = next((folder / "train.epochs=4").glob("confirm_baseline-*/runs/*/test.parquet"))
    path.write_bytes(bytes(path.stat().st_size))
    code, out, err = here("run", str(folder))
    assert code != 0 and is_one_line(err) and "cannot be read" in err
    assert "note: " in out and "2 of 2: train.epochs=4" in out

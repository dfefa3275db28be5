"""The round between search and confirmation, and the row that tunes only what both arms share."""

import json
import shutil

import pytest
from running import ONE_AT_A_TIME, kdstudy, results_of

from kdstudy.analysis.study_files import StudyFiles, is_row
from kdstudy.config.messages import validate
from kdstudy.config.sections import Finalists
from kdstudy.search.manager import METRIC
from kdstudy.stages import finalists
from kdstudy.store.record import Record, TrialState

STAGES = {stage.name: arm for arm, stage in finalists.FINALISTS.items()}
FINALISTS = ("--set", "finalists.configurations=2", "--set", "finalists.seeds=2")


def row(trial, *accuracies):
    return {"trial": trial, "parameters": {"lr": trial}, "runs": [0, 1], "accuracies": list(accuracies)}


def test_the_best_go_on_and_those_that_leave_much_at_its_default():
    """None is the point that tunes only what both arms share, 0 the default point."""
    assert finalists.candidates([5, 3, 8, 0, 1], [None], 3, 5) == [5, None, 3, 8, 0]
    assert finalists.candidates([5, 0, 8, 1], [], 3, 4) == [5, 0, 8]
    assert finalists.candidates([5, 3, 8], [8], 2, 3) == [5, 8, 3]  # the default point failed
    assert finalists.candidates([5, 3, 8, 0], [None], 4, 2) == [5, None]  # as many as may run again


def test_the_best_mean_wins_and_ties_go_to_the_default():
    assert finalists.winner([row(5, 0.9, 0.5), row(3, 0.8, 0.7), row(0, 0.7, 0.7)])["trial"] == 3
    assert finalists.winner([row(5, 0.8, 0.6), row(3, 0.6, 0.8), row(0, 0.7, 0.7)])["trial"] == 0
    assert finalists.winner([row(5, 0.8, 0.6), row(3, 0.6, 0.8), row(0, 0.6, 0.7)])["trial"] == 5  # ranked first
    assert finalists.winner([row(5, 0.9, None), row(3, 0.6, 0.8)])["trial"] == 3  # one of its runs failed
    assert finalists.winner([row(5, None, None)]) is None


def test_a_candidates_own_trial_is_one_more_run():
    best, only = row(5, 0.6) | {"searched": 0.8}, row(None, 0.69) | {"searched": None}
    default = {"trial": 0, "parameters": {}, "runs": [], "accuracies": [], "searched": 0.68}
    assert finalists.winner([best, only, default])["trial"] == 5  # 0.70 on average
    assert finalists.winner([best | {"searched": 0.7}, only, default])["trial"] is None
    assert finalists.winner([best | {"searched": 0.7}, only, default | {"searched": 0.69}])["trial"] == 0


def test_rows_hold_last_accuracies_of_complete_runs(tmp_path):
    record, search = Record(tmp_path / "record.jsonl"), Record(tmp_path / "search.jsonl")
    runs = [TrialState(number, {"lr": 0.1}, seed, 1, "finalist", True) for number, seed in enumerate((7, 8, 9))]
    search.add_trial(TrialState(0, {"lr": 0.1}, 5, 1, "default", True))
    search.report(0, 2, "complete", {METRIC: 0.5})
    for run in runs[:2]:
        record.add_trial(run)
    record.report(0, 1, "continue", {METRIC: 0.2})
    record.report(0, 2, "complete", {METRIC: 0.6})
    record.report(1, 1, "failed", {METRIC: 0.9}, "train_loss is nan")
    found = [finalists.Candidate(0, {"lr": 0.1}, tuple(runs)), finalists.Candidate(None, {"lr": 0.2}, ())]
    assert finalists.rows(record, found, search) == [
        {"trial": 0, "parameters": {"lr": 0.1}, "runs": [0, 1, None], "accuracies": [0.6, None, None],
         "searched": 0.5},
        {"trial": None, "parameters": {"lr": 0.2}, "runs": [], "accuracies": [], "searched": None}]


@pytest.mark.parametrize(("trials", "protected", "arm", "expected"), [
    (4, 2, "distill", None), (8, 3, "distill", None), (12, 5, "distill", (2, 1)), (20, 8, "distill", (3, 1)),
    (60, 11, "distill", (3, 2)), (200, 40, "distill", (3, 3)), (20, 8, "baseline", (3, 1))])
def test_by_default_finalists_cost_at_most_a_quarter_of_their_search(trials, protected, arm, expected):
    config = validate({"name": "a", "data": {"source": "digits"}, "teacher": {"model": "resnet18"},
                       "student": {"model": "resnet18"}, "train": {"epochs": 27},
                       "search": {"trials": trials, "protected": protected, "baseline_trials": trials,
                                  "baseline_protected": protected, "lr": {"log": [1e-4, 1e-2]},
                                  "alpha": {"linear": [0, 1]}}})
    found = config.finalists_of(arm)
    assert found == (Finalists(expected[0], *expected) if expected else None)
    if found:
        assert config.finalists_of("baseline") and config.finalists_of("distill")  # both arms or neither
        assert found.retrained * found.seeds <= config.expected_runs(arm) / 4


@pytest.fixture(scope="module")
def with_finalists(finished, tmp_path_factory):
    """The finished study, run again with finalists asked for; and what that printed."""
    home = tmp_path_factory.mktemp("finalists")
    shutil.copytree(finished[0].parent, home / "studies")
    printed = kdstudy("run", *ONE_AT_A_TIME, *FINALISTS, cwd=home).stdout
    return home / "studies" / "digits-smoke", printed


@pytest.mark.slow
def test_finalists_run_again_on_fresh_seeds_and_the_searches_stay(with_finalists, finished):
    folder, printed = with_finalists
    assert "distill          =" in printed and "finalists        ✓" in printed
    study = StudyFiles(folder)
    searched = {(event["seed"], event["view_seed"]) for arm in ("baseline", "distill")
                for event in study.events[arm] if event["event"] == "trial"}
    confirmed = {event["seed"] for event in study.events["confirm"] if event["event"] == "trial"}
    for name, arm in STAGES.items():
        done, events = study.done(name), [event for event in study.events[name] if event["event"] == "trial"]
        ranking = study.done(arm)["ranking"]
        shared = [None] if study.done(arm).get("only_shared") else []
        assert [row["trial"] for row in done["rows"]] == finalists.candidates(ranking, shared, 2, 4)
        seeds = {event["seed"] for event in events}
        assert len(seeds) == 2 and not seeds & {seed for seed, _ in searched} and not seeds & confirmed
        assert {event["view_seed"] for event in events} == {view_seed for _, view_seed in searched}
        assert done["winner"] == finalists.winner(done["rows"])["trial"]


@pytest.mark.slow
def test_what_the_finalists_chose_is_what_is_confirmed(with_finalists):
    study = StudyFiles(with_finalists[0])
    for name, arm in (("finalists_baseline", "baseline"), ("finalists", "distilled")):
        tuned = next(row for row in study.confirmation["rows"] if (row["arm"], row["configuration"]) == (arm, "tuned"))
        assert tuned["trial"] == study.done(name)["winner"]
        assert tuned["parameters"] == study.done(name)["parameters"]
    for arm, selected in results_of(with_finalists[0])["evidence"]["selected"].items():
        tuned = next(row for row in study.confirmation["rows"] if is_row(row, arm, "tuned"))
        # The point that tunes only what both arms share has no trial in the search to compare with.
        assert selected["finalists"] if tuned["trial"] is not None else selected is None


@pytest.mark.slow
def test_again_there_is_nothing_to_do(with_finalists):
    folder, _ = with_finalists
    assert "Nothing to do" in kdstudy("run", folder, cwd=folder.parent.parent).stdout


@pytest.mark.slow
def test_finalists_never_see_the_test_images(with_finalists):
    for name in STAGES:
        stage = StudyFiles(with_finalists[0]).stage(name)
        assert not list(stage.rglob("*.parquet")) and (stage / "record.jsonl").exists()


def test_a_study_without_finalists_has_no_such_stage(finished):
    folder, printed = finished
    assert "finalists" not in printed and "8/8 export" in printed
    assert not list(folder.glob("finalists*"))
    assert not {"finalists", "finalists_baseline"} & set(StudyFiles(folder).planned)


def test_a_row_tunes_only_what_both_arms_share(finished):
    folder, _ = finished
    rows = {row["configuration"]: row for row in results_of(folder)["rows"] if row["arm"] == "distilled"}
    assert list(rows) == ["default", "only lr tuned", "tuned"]
    only, default = rows["only lr tuned"], rows["default"]
    assert (only["temperature"], only["alpha"]) == (default["temperature"], default["alpha"])
    assert only["lr"] != default["lr"] and 3e-4 <= only["lr"] <= 1e-2
    study = StudyFiles(folder)
    stage = next(row["stage"] for row in study.confirmation["rows"] if row["configuration"] == "only lr tuned")
    run = next(row["runs"][0] for row in study.confirmation["rows"] if row["configuration"] == "only lr tuned")
    ran = next(event["parameters"] for event in study.events[stage]
               if event["event"] == "trial" and event["trial"] == run)
    assert ran == {"temperature": only["temperature"], "alpha": only["alpha"], "lr": only["lr"]}
    evidence = results_of(folder)["evidence"]["only"]
    assert evidence["gain"]["mean"] + evidence["rest"]["mean"] == pytest.approx(results_of(folder)["gain"]["mean"])
    assert "only_shared" in json.loads((folder / study.description["stages"]["distill"] / "done.json").read_text())


@pytest.mark.slow
def test_finalists_that_were_cut_off_go_on_to_the_same_end(with_finalists, tmp_path):
    folder, _ = with_finalists
    shutil.copytree(folder, tmp_path / "study")
    study = StudyFiles(tmp_path / "study")
    stage, whole = study.stage("finalists"), study.done("finalists")
    lines = (stage / "record.jsonl").read_text().splitlines()
    ended = [index for index, line in enumerate(lines) if '"decision": "complete"' in line]
    (stage / "record.jsonl").write_text("\n".join(lines[:ended[1] + 1]) + "\n" + lines[ended[1] + 1][:40])
    (stage / "done.json").unlink()
    kdstudy("run", tmp_path / "study", "--until", "finalists", cwd=tmp_path)
    again = StudyFiles(tmp_path / "study")
    assert again.done("finalists")["rows"] == whole["rows"] and again.done("finalists")["winner"] == whole["winner"]
    kept = [event for event in again.events["finalists"] if event["event"] == "report"]
    assert len(kept) == sum('"event": "report"' in line for line in lines)  # nothing finished was run again

"""The audit of the usual protocol: its numbers by hand, its settings, its runs, and a driver that is killed."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from known_nulls import pair_coverage
from running import AUDIT, KDSTUDY, kdstudy, results_of, wait_until, with_set
from scipy import stats
from synthetic import here, write_finished
from test_report import parameters_of, write_json
from test_verdict import BASE, raised, right_for, rows_of, study_of, write_predictions

from kdstudy.analysis import frames
from kdstudy.analysis.audit import PROTOCOLS, audit, false_reports
from kdstudy.analysis.frames import curves
from kdstudy.analysis.outcome import results
from kdstudy.analysis.report import build
from kdstudy.analysis.significance import crossed_interval, pair_share, paired_t_interval
from kdstudy.analysis.stage_names import AUDIT_STAGES
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import load_study
from kdstudy.errors import UserError
from kdstudy.stages.order import STAGE_FILES
from kdstudy.store import check
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Task, on_test, save

# -- the numbers, by hand ---------------------------------------------------------------------------------------------

# The last accuracies of each configuration on three seeds, in percent, and by how much the best epoch is better.
LAST = {("baseline", "published"): [50, 51, 52], ("baseline", "default"): [53, 53, 55],
        ("baseline", "tuned"): [58, 59, 60], ("distilled", "default"): [56, 58, 57],
        ("distilled", "tuned"): [61, 61, 64]}
BETTER = {("baseline", "published"): [2, 1, 1], ("baseline", "default"): [1, 2, 0],
          ("baseline", "tuned"): [0, 0, 0], ("distilled", "default"): [3, 2, 3], ("distilled", "tuned"): [1, 1, 1]}
GAINS = [(59 - 52 + 60 - 52 + 60 - 53) / 3, (59 - 54 + 60 - 55 + 60 - 55) / 3, (3 + 5 + 2) / 3, (-2 - 1 - 3) / 3,
         (3 + 2 + 4) / 3]


def add_audit(folder, last=LAST, tuned=None, seeds=(201, 202, 203), train=True):
    """An audit whose runs reach these accuracies, in percent; the best test epoch is the third of four."""
    found = {"audit_baseline": [], "audit": []}
    events = {stage: [] for stage in found}
    for index, ((arm, configuration), accuracies) in enumerate(last.items()):
        stage = "audit_baseline" if arm == "baseline" else "audit"
        parameters = parameters_of(arm, 1 if configuration == "tuned" else 0)
        parameters |= {"batch_size": 128} if configuration == "published" else {}
        parameters = tuned if tuned and configuration == "tuned" else parameters
        runs = []
        for seed, right in zip(seeds, right_for(accuracies, 7 * index), strict=True):
            number = sum(len(row["runs"]) for row in found[stage]) + len(runs)
            runs.append(number)
            write_predictions(folder / f"{stage}-0" / "runs" / f"{number:03d}" / "test.parquet", right)
            events[stage].append({"event": "trial", "trial": number, "parameters": parameters, "seed": seed,
                                  "view_seed": seed, "origin": "audit", "protected": True, "label": configuration})
            best = right.mean() + BETTER[arm, configuration][len(runs) - 1] / 100
            for epoch, accuracy in enumerate([0.1, 0.3, best, right.mean()], 1):
                events[stage].append({
                    "event": "report", "trial": number, "epoch": epoch, "reason": None,
                    "decision": "complete" if epoch == 4 else "continue",
                    "metrics": {"validation_accuracy": 0.5, "validation_loss": 1.0, "test_accuracy": accuracy}})
        found[stage].append({"arm": arm, "configuration": configuration, "parameters": parameters, "trial": None,
                             "runs": runs})
    description = json.loads((folder / "stages.json").read_text())
    for stage, rows in found.items():
        lines = [json.dumps({"sequence": place, "time": float(place), **event})
                 for place, event in enumerate(events[stage])]
        (folder / f"{stage}-0" / "record.jsonl").write_text("\n".join(lines) + "\n")
        write_json(folder / f"{stage}-0" / "done.json", {
            "outcome": "", "seconds": 1.0, "runs": len(seeds) * len(rows), "seeds": list(seeds), "rows": rows})
        description["stages"][stage] = f"{stage}-0"
    write_json(folder / "stages.json", description)
    if train:
        settings = (folder / "study.toml").read_text()
        (folder / "study.toml").write_text(f"{settings}\n[train]\nbatch_size = 64\n[audit]\nseeds = {len(seeds)}\n")


@pytest.fixture
def confirmed(tmp_path):
    return study_of(tmp_path / "s", rows_of(BASE, raised([6.0, 6.5, 6.2]), baseline_default=BASE - 3)).folder


def test_each_protocols_gain_and_each_change_by_hand(confirmed):
    before = results(StudyFiles(confirmed))
    add_audit(confirmed)
    outcome = results(StudyFiles(confirmed))
    found = outcome["audit"]
    assert [row["protocol"] for row in found["protocols"]] == [protocol.name for protocol in PROTOCOLS]
    assert [row["gain"]["mean"] for row in found["protocols"]] == pytest.approx(GAINS)
    frame = frames.audit(StudyAnalysis.of(confirmed))
    assert list(frame["protocol"]) == [protocol.name for protocol in PROTOCOLS]
    assert list(frame["gain_points"]) == pytest.approx(GAINS) and (frame["gain_low_points"] < GAINS).all()
    assert list(frame["change_points"][1:]) == pytest.approx(np.diff(GAINS)) and frame["change_points"].isna()[0]
    changes = [row["change"]["mean"] for row in found["protocols"][1:]]
    assert changes == pytest.approx(np.diff(GAINS)) and found["protocols"][0]["change"] is None
    assert found["overstated"]["mean"] == pytest.approx(GAINS[0] - GAINS[-1])
    assert (found["seeds"], found["runs"], found["images"]) == (3, 15, 2000)
    assert (found["batch_size"], found["baseline_batch_size"]) == (64, 128)
    assert [row["gain"]["over"] for row in found["protocols"]] == ["seeds"] * 2 + ["seeds and images"] * 3
    assert [row["change"]["over"] for row in found["protocols"][1:]] == ["seeds"] * 2 + ["seeds and images"] * 2
    # The study's own answer stays as it was, and says what the audit is not.
    assert {name: outcome[name] for name in ("rows", "gain", "verdict")} == {
        name: before[name] for name in ("rows", "gain", "verdict")}
    assert "the audit's 15 runs, on seeds of their own, were tested after every epoch, but are no look" in \
        outcome["scope"] and "audit" not in before["scope"]


def test_the_intervals_are_paired_over_the_seeds_and_the_images(confirmed):
    add_audit(confirmed)
    protocols = audit(StudyFiles(confirmed))["protocols"]
    first = paired_t_interval(np.array([59 - 52, 60 - 52, 60 - 53.0]))
    assert (protocols[0]["gain"]["low"], protocols[0]["gain"]["high"]) == pytest.approx((first.low, first.high))
    right = {key: right_for(values, 7 * index) for index, (key, values) in enumerate(LAST.items())}
    tuned = crossed_interval(100.0 * right["distilled", "tuned"] - 100.0 * right["baseline", "tuned"], unit=100)
    assert (protocols[4]["gain"]["low"], protocols[4]["gain"]["high"]) == pytest.approx((tuned.low, tuned.high))
    step = crossed_interval(100.0 * right["baseline", "default"] - 100.0 * right["baseline", "tuned"], unit=100)
    assert (protocols[3]["change"]["low"], protocols[3]["change"]["high"]) == pytest.approx((step.low, step.high))


def test_a_run_that_diverged_counts_as_a_guess_and_keeps_its_best_epoch(confirmed):
    add_audit(confirmed)
    record = confirmed / "audit_baseline-0" / "record.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for event in lines:
        if event["event"] == "report" and event["trial"] == 0 and event["epoch"] == 4:
            event |= {"decision": "failed", "reason": "train_loss is nan at epoch 4"}
            event["metrics"]["test_accuracy"] = 0.99  # of weights that are no numbers
    record.write_text("".join(f"{json.dumps(event)}\n" for event in lines))
    write_predictions(confirmed / "audit_baseline-0" / "runs" / "000" / "test.parquet", right_for([25])[0])
    found = audit(StudyFiles(confirmed))
    assert found["protocols"][0]["gain"]["mean"] == pytest.approx(GAINS[0])  # 52 %, at the third epoch
    assert found["runs"] == 14


def test_where_the_search_chose_the_default_point_tuning_changes_nothing(confirmed):
    same = LAST | {("baseline", "tuned"): LAST["baseline", "default"]}
    add_audit(confirmed, same)
    for path in (confirmed / "audit_baseline-0", confirmed / "confirm_baseline-0"):
        done = json.loads((path / "done.json").read_text())
        rows = {row["configuration"]: row for row in done["rows"]}
        rows["tuned"]["parameters"] = rows["default"]["parameters"]
        if path.name.startswith("audit"):
            rows["tuned"]["runs"] = rows["default"]["runs"]
        write_json(path / "done.json", done)
    change = audit(StudyFiles(confirmed))["protocols"][3]["change"]
    assert (change["mean"], change["low"], change["high"], change["p"]) == (0, 0, 0, 1)


def test_runs_that_agree_on_every_image_are_not_known_to_be_equal(confirmed):
    """Only the same runs are: with others, images that were not tested may differ."""
    add_audit(confirmed)
    for number in range(3):
        runs = [confirmed / f"audit_baseline-0/runs/{run:03d}/test.parquet" for run in (3 + number, 6 + number)]
        shutil.copyfile(*runs)  # the tuned baseline now predicts as the default one does
    change = audit(StudyFiles(confirmed))["protocols"][3]["change"]
    assert change["mean"] == 0 and change["low"] < 0 < change["high"] and change["over"] == "seeds and images"


@pytest.mark.parametrize("lost", [("baseline", "published"), ("baseline", "tuned"), ("distilled", "default"), None])
def test_an_audit_that_lacks_what_it_compares_is_not_shown(confirmed, lost):
    """As a stranger's may: the done-mark is valid, but a row or the batch size is not there."""
    add_audit(confirmed)
    path = confirmed / ("audit-0" if lost and lost[0] == "distilled" else "audit_baseline-0") / "done.json"
    done = json.loads(path.read_text())
    for row in done["rows"]:
        row["parameters"].pop("batch_size", None)
        if (row["arm"], row["configuration"]) == lost:
            row["configuration"] = done["rows"][-1]["configuration"] if lost[1] != "tuned" else "default"
    write_json(path, done)
    build(confirmed)
    assert ("How much of a gain is protocol?</h2>" in (confirmed / "results" / "report.html").read_text())
    assert ("audit" in results(StudyFiles(confirmed))) == (lost is None)


@pytest.mark.parametrize("stale", [{"tuned": {"lr": 0.5}}, {"seeds": (201, 202)}])
def test_an_audit_of_an_earlier_winner_or_of_other_seeds_is_not_shown(confirmed, stale):
    last = {key: values[:len(stale.get("seeds", values))] for key, values in LAST.items()}
    add_audit(confirmed, last, **stale)
    if "seeds" in stale:  # one stage has gone on to more
        done = json.loads((confirmed / "audit-0" / "done.json").read_text())
        write_json(confirmed / "audit-0" / "done.json", done | {"seeds": [201, 202, 203]})
    assert "audit" not in results(StudyFiles(confirmed))


def test_false_reports_count_every_pair_of_different_seeds():
    """Of the six pairs, second minus first: 3, 1 | 0, 1 | 0, 3 against the seeds 0, 1, 2 of the first."""
    found = false_reports(np.array([50.0, 50.0, 50.0]), np.array([50.0, 53.0, 51.0]), 1.0)
    assert (found["rate"], found["pairs"], found["mean"]) == (4 / 6, 6, pytest.approx(4 / 3))
    assert false_reports(np.array([70.2, 70.3]), np.array([70.0, 71.54]), 1.34)["rate"] == 0.5  # 1.34 but for rounding


def test_the_share_of_pairs_has_the_jackknifes_variance():
    holds = np.zeros((6, 6), bool)
    holds[0, 1:] = True  # only where seed 0 comes first: 5 of 30 pairs
    found = pair_share(holds)
    without = np.array([0, *[4 / 20] * 5])
    variance = 5 / 6 * ((without - without.mean())**2).sum()
    assert found.mean == pytest.approx(5 / 30) and found.standard_error == pytest.approx(variance**0.5)
    share = 5 / 30
    assert found.degrees_of_freedom == pytest.approx(max(3, share * (1 - share) / variance))
    # Nothing seen in n seeds is nothing seen in n / 2 independent pairs: exactly the bound of that binomial.
    none = pair_share(np.zeros((20, 20), bool))
    assert (none.mean, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025**(1 / 10))
    assert pair_share(np.zeros((2, 2), bool)).high == pytest.approx(stats.beta.ppf(0.975, 1, 1))
    with pytest.raises(ValueError, match="at least two seeds"):
        pair_share(np.zeros((1, 1), bool))


@pytest.mark.parametrize(("seeds", "share"), [(5, 0.05), (20, 0.05), (20, 0.4)])
def test_the_interval_of_a_share_of_pairs_holds_where_the_bootstraps_does_not(seeds, share):
    other, bootstrap, same, _ = pair_coverage(seeds, share, 400, np.random.default_rng(1))
    assert other > 0.925 and same > 0.925  # two standard errors below 95 %
    assert bootstrap < other


def test_page_and_markdown_have_the_audit(confirmed):
    add_audit(confirmed)
    build(confirmed)
    page, text = ((confirmed / "results" / name).read_text() for name in ("report.html", "results.md"))
    assert "id=s-audit" in page and "How much of a gain is protocol?" in page
    assert "| 1. as published | default, batch 128 | default, batch 64 | best test epoch | +7.33 [" in text
    assert "| 4. tuned baseline | tuned | default, batch 64 | last | −2.00 [" in text
    assert "Measured as is usual (best test epoch, nothing tuned, batch 128 against 64), distillation gains +7.33" in \
        text
    assert "The usual protocol reports 4.33 points more (" in text
    assert "a gain of 1.34 points or more in " in text  # published.gain
    assert "test_accuracy_percent" in curves(StudyAnalysis.of(confirmed))


def test_a_study_without_an_audit_says_nothing_of_one(confirmed):
    build(confirmed)
    assert "audit" not in (confirmed / "results" / "results.md").read_text()
    assert "s-audit" not in (confirmed / "results" / "report.html").read_text()
    assert "test_accuracy" not in (confirmed / "results" / "curves.csv").read_text()


# -- the settings -----------------------------------------------------------------------------------------------------

PROBLEMS = {
    "one seed": (["audit.seeds=1"], "audit.seeds = 1: must be at least 2"),
    "the same batch size": (["audit.baseline_batch_size=36"], "audit.baseline_batch_size = 36 is train.batch_size too"),
    "no gain": (["audit.gain=0"], "audit.gain = 0: must be greater than 0"),
    "an unknown setting": (["audit.seed=3"], "audit.seed"),
    "given logits": (["teacher.model=", "teacher.logits=x.safetensors", "audit.seeds=4"],
                     "set teacher.trained in place of teacher.logits, or remove [audit]"),
}


@pytest.mark.parametrize(("overrides", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_settings_that_suit_no_audit_are_refused_in_one_line(overrides, said):
    with pytest.raises(UserError) as error:
        load_study("digits", tuple(overrides))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_study_without_an_audit_has_the_folders_and_the_order_that_it_had(tmp_path):
    plain, more = (Study(load_study("digits", settings), Storage(tmp_path / "s"))
                   for settings in ((), ("audit.seeds=4",)))
    assert "audit" not in plain.config.to_toml()
    assert list(more.stages) == [*plain.stages, *AUDIT_STAGES]
    assert more.stages["baseline"].folder.path == plain.stages["baseline"].folder.path
    assert more.stages["teacher_logits"].view_seeds == plain.stages["teacher_logits"].view_seeds


def test_five_arms_on_seeds_of_their_own(tmp_path):
    study = Study(load_study("digits", ("audit.seeds=4",)), Storage(tmp_path / "s"))
    loads = {name: study.stages[name].workload() for name in (*AUDIT_STAGES, "confirm_baseline")}
    assert (loads["audit_baseline"].runs, loads["audit"].runs) == (12, 8)
    assert loads["audit_baseline"].passes > loads["confirm_baseline"].passes  # each epoch is tested
    seeds = study.stages["audit"].seeds
    assert len(set(seeds)) == 4 and not {*seeds} & {*study.context.view_seeds}
    assert study.stages["audit_baseline"].seeds == study.stages["audit_logits"].view_seeds == seeds
    more = Study(load_study("digits", ("audit.seeds=6",)), Storage(tmp_path / "s")).stages["audit"].seeds
    assert more[:4] == seeds  # so that more seeds keep the runs there are


@pytest.mark.parametrize("preset", ["digits", "cifar100-small", "cifar100"])
def test_a_trial_run_has_a_small_audit(preset):
    batch = load_study(preset).train.batch_size
    config = load_study(preset, (f"audit.baseline_batch_size={2 * batch}",))
    small = load_study(preset, ("audit.seeds=2", f"audit.baseline_batch_size={2 * batch}"), smoke=True)
    assert config.audit.seeds == 20 and small.audit.seeds == 2


def test_a_stranger_cannot_name_more_in_an_audit(tmp_path, confirmed):
    folder = write_finished(tmp_path / "stranger")
    add_audit(confirmed)
    path = folder / "audit-0"
    shutil.copytree(confirmed / "audit-0", path)
    done = json.loads((path / "done.json").read_text())
    done["rows"][0]["configuration"] = "../x"
    write_json(path / "done.json", done)
    with pytest.raises(UserError, match=r"done\.json is damaged"):
        check.check(folder, STAGE_FILES)


# -- its runs ---------------------------------------------------------------------------------------------------------


def test_testing_after_every_epoch_changes_no_training_and_says_what_is_saved(images, tmp_path):
    plain = Task(train=images, validation=images, classes=4, image_size=8, report_every=1, test=images,
                 model=ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}),
                 training=TrainSettings(epochs=3, batch_size=16), views=ViewSettings())
    saved = {}
    for task in (plain, Task(**{**vars(plain), "test_reports": True})):
        training, said = start_distillation(task, {"lr": 3e-3, "alpha": 0.0}, seed=1, view_seed=1), {}
        while not training.finished:
            training.run(1)
            said = on_test(training, task)
        folder = tmp_path / str(task.test_reports)
        folder.mkdir()
        save(training, task, folder)
        saved[task.test_reports] = (folder / "test.parquet").read_bytes()
        assert ("test_accuracy" in said) == task.test_reports
    assert saved[False] == saved[True]
    predicted = training.validation.logits(training.result).argmax(1)
    assert said["test_accuracy"] == float((predicted == torch.from_numpy(images.labels)).float().mean())


def per_epoch(folder):
    """(stage, seed, parameters, epoch): test accuracy."""
    study = StudyFiles(folder)
    named = study.trials.set_index(["stage", "trial"])
    rows = study.curves[study.curves["stage"].isin(AUDIT_STAGES)]
    return {(row.stage, str(named.loc[row.stage, row.trial][["seed", "batch_size", "lr", "temperature"]].to_list()),
             row.epoch): row.test_accuracy for row in rows.itertuples()}


@pytest.mark.slow
def test_an_audit_of_a_finished_study_runs_its_arms_alone_and_is_shown(finished, extended):
    study, before = StudyFiles(extended), StudyFiles(finished[0])
    found, epochs = results_of(extended)["audit"], load_study(str(extended)).train.epochs
    runs = {(stage, run) for stage in ("audit_baseline", "audit")
            for row in study.done(stage)["rows"] for run in row["runs"]}
    assert len(runs) in (8, 10)  # arms whose default point was chosen run once
    assert (found["seeds"], found["runs"]) == (2, len(runs)) and found["statements"] == []  # a trial run
    assert "<h2>How much of a gain is protocol?</h2>" in (extended / "results" / "report.html").read_text()
    pairs = zip(results_of(extended)["rows"], results_of(finished[0])["rows"], strict=True)
    assert all(row == earlier for row, earlier in pairs if "teachers" not in row)  # the winner has two teachers now
    for stage in before.planned:
        assert len(before.events.get(stage, [])) == len(study.events.get(stage, []))
    tested = study.curves.dropna(subset=["test_accuracy"])
    assert set(tested["stage"]) == {"audit_baseline", "audit"} and len(tested) == len(runs) * epochs
    for stage in ("audit_baseline", "audit"):
        done = study.done(stage)
        assert set(study.trials.loc[study.trials["stage"] == stage, "seed"]) == set(done["seeds"])
        for row in done["rows"]:
            for run in row["runs"]:
                last = tested[(tested["stage"] == stage) & (tested["trial"] == run) & (tested["epoch"] == epochs)]
                assert last["test_accuracy"].item() == pytest.approx(study.correct(run, stage).mean())
    _, again, _ = here("run", str(extended))
    assert "audit baseline" in again and "0:" not in again.split("audit baseline")[1].split("\n")[0]  # nothing to do


@pytest.mark.slow
def test_a_packed_study_keeps_its_audit(extended, tmp_path):
    assert here("pack", str(extended), str(tmp_path / "small"))[0] == 0
    assert results_of(tmp_path / "small")["audit"] == results_of(extended)["audit"]
    study = Study(load_study(str(tmp_path / "small")), Storage(tmp_path / "small"))
    assert all(study.stages[name].is_finished for name in AUDIT_STAGES)


@pytest.mark.slow
def test_an_audit_that_is_killed_half_way_ends_with_the_same_test_accuracies(finished, extended, tmp_path):
    home = tmp_path / "mine"
    shutil.copytree(finished[0], home)
    command = [*KDSTUDY, "run", str(home), *with_set(AUDIT)]
    for marks in ('"epoch": 5', '"epoch": 9'):
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(driver, lambda marks=marks: any(marks in path.read_text()
                                                   for path in home.glob("audit*/record.jsonl")))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    kdstudy(*command[len(KDSTUDY):], cwd=tmp_path)
    assert per_epoch(home) == per_epoch(extended) and len(per_epoch(home)) >= 8 * load_study(str(home)).train.epochs
    assert not any("mismatch" in path.read_text() for path in home.glob("audit*/record.jsonl"))
    assert results_of(home)["audit"] == results_of(extended)["audit"]

"""The controls: what they change, what they cost, and what the verdict says of them."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from running import KDSTUDY, kdstudy, results_of, wait_until, with_set
from synthetic import here, is_one_line, write_finished
from test_report import write_json
from test_verdict import BASE, raised, right_for, rows_of, study_of, write_predictions

from kdstudy.analysis import frames
from kdstudy.analysis.console_table import controls_table
from kdstudy.analysis.controls import NAMES
from kdstudy.analysis.outcome import results
from kdstudy.analysis.report import build
from kdstudy.analysis.significance import holm
from kdstudy.analysis.stage_names import CONTROL_STAGES
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import load_study
from kdstudy.config.models import check_controls
from kdstudy.config.sections import CONTROLS
from kdstudy.errors import UserError
from kdstudy.planning.estimate import ModelSizes
from kdstudy.stages.controls import CONTROLS as CONTROL_KINDS
from kdstudy.store import packing
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables.controls import CHANGES, permuted_classes, placebo_partners

ALL = "controls.kinds=['label_smoothing','placebo','permuted','equal_compute','self']"
PLAIN = ("views.mixup=0", ALL)

# -- the logits -------------------------------------------------------------------------------------------------------

VIEWS, CLASSES = 3, 5
LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 1, 3, 4, 4, 1])  # class 2 has one image
LOGITS = torch.from_numpy(np.random.default_rng(0).normal(size=(VIEWS, len(LABELS), CLASSES)))


def changed(name, seed=7):
    targets = CHANGES[name](lambda view, indices: LOGITS[view][indices], LABELS, CLASSES, seed, torch.device("cpu"))
    return torch.stack([targets(view, torch.arange(len(LABELS))) for view in range(VIEWS)])


def test_the_placebo_gives_each_image_the_logits_of_another_of_its_class():
    partners, logits = placebo_partners(LABELS, 7), changed("placebo")
    assert sorted(partners) == list(range(len(LABELS)))
    assert (LABELS[partners] == LABELS).all()
    alone = np.flatnonzero(np.bincount(LABELS)[LABELS] == 1)
    assert (np.flatnonzero(partners == np.arange(len(LABELS))) == alone).all() and len(alone) == 1
    assert torch.equal(logits, LOGITS[:, partners])  # of the same view
    for label in range(CLASSES):
        mine = label == LABELS
        for view in range(VIEWS):
            assert sorted(map(tuple, logits[view][mine].tolist())) == sorted(map(tuple, LOGITS[view][mine].tolist()))


def test_permuted_logits_keep_the_label_and_the_sizes_of_the_others():
    logits, own = changed("permuted"), torch.from_numpy(LABELS)
    kept = [logits.gather(2, own.expand(VIEWS, -1)[..., None]), LOGITS.gather(2, own.expand(VIEWS, -1)[..., None])]
    assert torch.equal(*kept)
    assert torch.equal(logits.sort(2).values, LOGITS.sort(2).values)
    assert (logits != LOGITS).any(2).float().mean() > 0.7  # 1 in 24 permutations of four classes changes nothing
    sources = permuted_classes(LABELS, CLASSES, 7)
    assert torch.equal(logits, LOGITS.gather(2, torch.from_numpy(sources).long().expand(VIEWS, -1, -1)))


def test_every_permutation_of_the_wrong_classes_is_equally_likely(monkeypatch):
    monkeypatch.setattr("kdstudy.trainables.controls.DRAWN_AT_ONCE", 4096)  # in pieces, as with many images
    labels = np.tile(np.arange(4), 3000)
    sources = permuted_classes(labels, 4, 0)
    for label in range(4):
        found, counts = np.unique(sources[labels == label], axis=0, return_counts=True)
        assert len(found) == 6 and (found[:, label] == label).all()
        assert abs(counts - 500).max() < 100  # five standard errors


def test_controls_are_fixed_by_their_seed_and_not_by_batches():
    for name in CHANGES:
        assert torch.equal(changed(name), changed(name)) and not torch.equal(changed(name), changed(name, seed=8))
        targets = CHANGES[name](lambda view, indices: LOGITS[view][indices], LABELS, CLASSES, 7, torch.device("cpu"))
        few = torch.tensor([5, 0, 9])
        assert torch.equal(targets(1, few), changed(name)[1][few])


# -- the settings -----------------------------------------------------------------------------------------------------

PROBLEMS = {
    "an unknown one": (["controls.kinds=['magic']"], "controls.kinds.0 = 'magic': must be 'label_smoothing'"),
    "one twice": (["controls.kinds=['self','self']"], "names a control twice; name each once"),
    "placebo of a mixture": (["controls.kinds=['placebo']"], "set views.mixup = 0 and views.cutmix = 0, or remove "
                             "placebo"),
    "permuted of a mixture": (["views.mixup=0", "views.cutmix=1", "controls.kinds=['permuted']"], "remove permuted"),
    "placebo without labels": (["views.mixup=0", "data.unlabelled=1", "controls.kinds='placebo'"],
                               "set data.unlabelled = 0"),
    "smoothed already": (["train.label_smoothing=0.1", "controls.kinds='label_smoothing'"],
                         "the baseline has label smoothing already"),
    "smoothing searched already": (["search.label_smoothing={linear=[0,0.2]}", "controls.kinds='label_smoothing'"],
                                   "remove search.label_smoothing"),
    "a range without the usual point": (["controls.label_smoothing={linear=[0.2,0.4]}",
                                         "controls.kinds='label_smoothing'"], "must include 0.1"),
    "too much smoothing": (["controls.label_smoothing={linear=[0,1]}", "controls.kinds='label_smoothing'"],
                           "controls.label_smoothing reaches 1.0: must be less than 1"),
    "a warm start": (["search.warm_start=studies/x", "controls.kinds='label_smoothing'"], "remove search.warm_start"),
    "the cost of given logits": (["teacher.model=", "teacher.logits=x.safetensors", "controls.kinds='equal_compute'"],
                                 "set teacher.trained in place of teacher.logits"),
}


@pytest.mark.parametrize(("overrides", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_settings_that_suit_no_control_are_refused_in_one_line(overrides, said):
    with pytest.raises(UserError) as error:
        load_study("digits", tuple(overrides))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_two_classes_leave_nothing_to_permute(apart):
    code, _, err = here("plan", "digits", *with_set(["data.classes=2", "views.mixup=0", "controls.kinds=permuted"]))
    assert code == 2 and is_one_line(err) and "two classes" in err


def test_a_smoke_study_of_two_classes_may_have_all_controls():
    check_controls(load_study("digits", PLAIN).model_copy(update={"smoke": True}), classes=2)


def test_a_study_without_controls_has_the_folders_and_the_order_that_it_had(tmp_path):
    plain, more = (Study(load_study("digits", settings), Storage(tmp_path / "s"))
                   for settings in (("views.mixup=0",), PLAIN))
    assert list(more.stages)[: len(plain.stages)] == list(plain.stages)
    assert set(more.stages) - set(plain.stages) == set(CONTROL_STAGES) == {stage.name for stage in CONTROL_KINDS}
    assert more.stages["baseline"].folder.path == plain.stages["baseline"].folder.path
    assert tuple(NAMES) == CONTROLS


# -- what they cost ---------------------------------------------------------------------------------------------------

def test_equal_compute_trains_for_what_the_teachers_logits_cost(tmp_path):
    study = Study(load_study("digits", (*PLAIN, "views.count=40")), Storage(tmp_path / "s"))
    sizes = ModelSizes.of(study.context)
    teacher, student = (sizes.forward_flop(study.context.model(name)) for name in ("teacher", "student"))
    extra = 40 * teacher / (3 * student)
    assert study.stages["control_equal_compute"].epochs == 300 + round(extra) > 301
    live = Study(load_study("digits", (*PLAIN, "views.count=40", "views.cache_gib=1e-6")), Storage(tmp_path / "t"))
    assert live.stages["control_equal_compute"].epochs == 300 + round(300 / 40 * extra)
    logits = study.stages["teacher_logits"].logits_bytes / 2**30
    no_room = Study(load_study("digits", (*PLAIN[:1], "controls.kinds=equal_compute", "views.count=40",
                                          "search.loss={choice=['hinton','features']}",
                                          f"views.cache_gib={1.1 * logits}")), Storage(tmp_path / "u"))
    assert no_room.stages["teacher_logits"].fits  # but not the features
    assert no_room.stages["control_equal_compute"].epochs == 300 + round(300 / 40 * extra)


def test_a_frozen_baseline_costs_less_so_that_equal_compute_has_more_epochs(tmp_path):
    free, frozen = (Study(load_study("digits", (*PLAIN, "views.count=40", f"train.freeze={value}")),
                          Storage(tmp_path / "s")).stages["control_equal_compute"].epochs - 300
                    for value in (0, "'all'"))
    assert frozen == pytest.approx(3 * free, abs=2)  # only the forward pass is left


def test_controls_keep_predictions_and_no_weights(tmp_path):
    study = Study(load_study("digits", PLAIN), Storage(tmp_path / "s"))
    confirm, control = (study.stages[name].space(1, lambda settings: 10**9).kept
                        for name in ("confirm_baseline", "control_placebo"))
    assert confirm - control == 10**9 and control > 0


def test_a_cheap_teacher_still_leaves_the_baseline_one_epoch_more(tmp_path):
    study = Study(load_study("digits", (*PLAIN, "views.count=1", "teacher.image_size=8", "train.epochs=30",
                                        "student.image_size=64")), Storage(tmp_path / "s"))
    assert study.stages["control_equal_compute"].epochs == 31


# -- what the verdict says --------------------------------------------------------------------------------------------

def test_holm_by_hand():
    """0.001 x 5, 0.011 x 4 and 0.014 x 3 are below 0.05; 0.03 x 2 is not, and so nothing after it is shown."""
    assert holm([0.03, 0.001, 0.045, 0.014, 0.011]) == [2, 5, 2, 3, 4]
    assert holm([0.02, 0.02, 0.02]) == [3, 3, 3]
    assert holm([0.001]) == [1] and holm([]) == []


def add_control(folder, kind, right, rests_on=None, seeds=None, **parameters):
    """A control that has run on the confirmation's seeds; right: (seeds, N) bool."""
    stage = f"control_{kind}"
    for run, one in enumerate(right):
        write_predictions(folder / f"{stage}-0" / "runs" / f"{run:03d}" / "test.parquet", one)
    write_json(folder / f"{stage}-0" / "done.json", {
        "seconds": 1.0, "runs": len(right), "seeds": seeds or [101 + index for index in range(len(right))], "epochs": 8,
        "rests_on": rests_on or {}, "rows": [{"arm": "control", "configuration": kind, "trial": None,
                                                         "parameters": {"lr": 2e-3, **parameters},
                                                         "runs": list(range(len(right)))}]})
    description = json.loads((folder / "stages.json").read_text())
    write_json(folder / "stages.json", description | {"stages": description["stages"] | {stage: f"{stage}-0"}})


@pytest.fixture
def helped(tmp_path):
    """A study whose distilled student is clearly better than the tuned baseline."""
    return study_of(tmp_path / "s", rows_of(BASE, raised([6.0, 6.5, 6.2]), baseline_default=BASE - 3)).folder


def test_the_verdict_names_the_strongest_control_beaten_and_those_that_are_not(helped):
    before = results(StudyFiles(helped))
    add_control(helped, "permuted", right_for(raised([1.0, 1.5, 1.2]), 3), alpha=0.5)
    add_control(helped, "label_smoothing", right_for(raised([2.0, 2.5, 2.2]), 5), label_smoothing=0.2)
    add_control(helped, "placebo", right_for(raised([5.0, 7.5, 5.2]), 9), alpha=0.5)
    outcome = results(StudyFiles(helped))
    assert outcome["rows"] == before["rows"] and outcome["gain"] == before["gain"]
    rows = {row["control"]: row for row in outcome["controls"]}
    assert list(rows) == ["label_smoothing", "placebo", "permuted"]
    assert rows["label_smoothing"]["test_mean"] == pytest.approx(BASE.mean() + 6.7 / 3, abs=0.05)
    assert rows["permuted"]["gain"]["mean"] == pytest.approx(5.0, abs=0.05)
    assert sorted(row["gain"]["comparisons"] for row in rows.values()) == [1, 2, 3]
    for row in rows.values():
        assert (row["gain"]["p"] < 0.05) == (row["gain"]["low"] > 0 or row["gain"]["high"] < 0)
    frame = frames.controls(StudyAnalysis.of(helped)).set_index("control")
    assert list(frame.index) == list(rows) and frame.loc["label_smoothing", "label_smoothing"] == 0.2
    for kind, row in rows.items():
        assert frame.loc[kind, "test_accuracy_percent"] == row["test_mean"]
        assert frame.loc[kind, "gain_low_points"] == row["gain"]["low"]
    helps, rest = outcome["verdict"].split(" over the tuned baseline on 3 paired seeds, ")
    assert helps.startswith("Distillation helps: +6.2")
    assert rest.startswith("+4.00 (+") and "over label smoothing, the strongest of two controls that it beats; not " \
        "shown over the placebo" in rest
    assert "The three comparisons with controls share 5 % (Holm)" in outcome["scope"]


def test_a_study_with_an_unfinished_control_can_be_packed(helped, tmp_path):
    for kind in ("permuted", "placebo"):
        add_control(helped, kind, right_for(raised([1.0, 1.5, 1.2]), 3), alpha=0.5)
    (helped / "control_placebo-0" / "done.json").unlink()
    shutil.rmtree(helped / "control_placebo-0" / "runs")

    def keep_runs(source, target, done, teacher):
        shutil.copytree(source / "runs", target / "runs")

    packing.pack(helped, tmp_path / "small", {stage.name: keep_runs for stage in CONTROL_KINDS}
                 | {name: keep_runs for name in ("confirm_baseline", "confirm")})
    assert [row["control"] for row in results_of(tmp_path / "small")["controls"]] == ["permuted"]


def test_a_control_that_is_better_is_said_to_be(helped):
    add_control(helped, "self", right_for(raised([11.0, 11.5, 11.2]), 3), alpha=0.5)
    assert "; worse than self-distillation: −5.00 (−" in results(StudyFiles(helped))["verdict"]


def test_without_a_gain_the_sentence_still_says_what_is_shown(tmp_path):
    folder = study_of(tmp_path / "s", rows_of(BASE, raised([-1.0, 1.0, 0.3]), baseline_default=BASE - 3)).folder
    add_control(folder, "permuted", right_for(BASE - 6, 3))
    verdict = results(StudyFiles(folder))["verdict"]
    assert verdict.startswith("No gain from distillation shown") and "; +6.10 (+" in verdict
    assert verdict.split(" over ")[-1].startswith("permuted logits")


@pytest.mark.parametrize("stale", [{"seeds": [101, 102, 999]}, {"rests_on": {"distilled": {"lr": 0.5}}},
                                   {"rests_on": {"baseline": {"lr": 0.5}}},
                                   {"rests_on": {"label_smoothing": {"lr": 0.5}}}])
def test_a_control_of_other_seeds_or_an_earlier_winner_is_not_shown(helped, stale):
    add_control(helped, "placebo", right_for(BASE), **stale)
    assert "controls" not in results(StudyFiles(helped))


def test_page_markdown_and_terminal_have_the_controls(helped):
    settings = (helped / "study.toml").read_text()
    (helped / "study.toml").write_text(f'{settings}\n[controls]\nkinds = ["equal_compute"]\n')
    add_control(helped, "equal_compute", right_for(raised([2.0, 2.5, 2.2]), 5))
    build(helped)
    outcome, page = results_of(helped), (helped / "results" / "report.html").read_text()
    assert "<h3>Controls</h3>" in page and "id=s-controls" in page
    assert "| equal compute | lr 2e-3 | 8 | 3 | 63.2" in (helped / "results" / "results.md").read_text()
    assert controls_table(outcome).rows[0][0] == "equal compute"


# -- a whole study ----------------------------------------------------------------------------------------------------

QUICK = (*PLAIN, "train.epochs=20", "teacher.epochs=4", "search.trials=4", "search.protected=2",
         "search.baseline_trials=4", "search.baseline_protected=2", "finalists.configurations=0", "confirm.seeds=2",
         "student.args.depth=1", "search.report_every=5", "search.checkpoint_every=5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("controls")
    kdstudy("run", "digits", *with_set(QUICK), "--dir", "mine", cwd=home)
    return home / "mine"


@pytest.mark.slow
def test_all_controls_run_on_the_confirmations_seeds(whole):
    study = StudyFiles(whole)
    outcome = results_of(whole)
    assert [row["control"] for row in outcome["controls"]] == list(NAMES)
    assert all(row["seeds"] == 2 and row["gain"] for row in outcome["controls"])
    seeds = study.done("confirm")["seeds"]
    for kind in NAMES:
        trials = study.trials[study.trials["stage"] == f"control_{kind}"]
        assert sorted(trials["seed"]) == sorted(seeds) and (trials["ended"] == "complete").all()
    winner = study.confirmed_row("distilled")["parameters"]
    for row in outcome["controls"]:
        shared = {name: row.get(name) for name in winner}
        assert (shared == winner) == (row["control"] in ("placebo", "permuted", "self"))
        assert row["epochs"] > 20 if row["control"] == "equal_compute" else row["epochs"] == 20
    assert {tuple(study.correct(run, f"control_{kind}")) for kind in ("placebo", "permuted", "self")
            for run in (0, 1)} != {tuple(study.correct(0)), tuple(study.correct(1))}


@pytest.mark.slow
def test_they_are_skipped_when_done_packed_and_taken_over(whole, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("record.jsonl")}
    assert "control_" not in kdstudy("status", whole, cwd=tmp_path).stdout  # named with blanks
    kdstudy("run", whole, cwd=tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("record.jsonl")}
    kdstudy("pack", whole, tmp_path / "small", cwd=tmp_path)
    assert results_of(tmp_path / "small")["controls"] == results_of(whole)["controls"]
    assert "nothing" in kdstudy("plan", tmp_path / "small", cwd=tmp_path).stdout.split("left to do")[1][:12]
    (again,) = [whole.parent / "again"]
    printed = kdstudy("run", "digits", *with_set(QUICK), "--dir", again, cwd=tmp_path).stdout
    assert printed.count("(taken from mine)") == len(StudyFiles(again).planned) == 14


@pytest.mark.slow
def test_more_seeds_run_the_controls_on_these_too_and_a_killed_driver_goes_on(whole, tmp_path):
    home = tmp_path / "mine"
    subprocess.run(["cp", "-r", whole, home], check=True)
    command = [*KDSTUDY, "run", str(home), "--set", "confirm.seeds=3"]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(driver, lambda: any(path.read_text().count('"event": "trial"') == 3
                                   for path in home.glob("control_*/record.jsonl")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    kdstudy(*command[len(KDSTUDY):], cwd=tmp_path)
    rows = results_of(home)["controls"]
    assert [row["seeds"] for row in rows] == [3] * 5
    assert not any("mismatch" in path.read_text() for path in home.glob("*/record.jsonl"))


def test_a_stranger_cannot_name_what_a_control_rests_on(tmp_path, apart):
    folder = write_finished(tmp_path / "s")
    (folder / "control_placebo-0").mkdir()
    (folder / "control_placebo-0" / "done.json").write_text(json.dumps({
        "outcome": "x", "seconds": 1.0, "runs": 0, "seeds": [1], "epochs": 1, "rests_on": {"../x": {}},
        "rows": [{"arm": "control", "configuration": "placebo", "parameters": {}, "runs": [0]}]}))
    code, _, err = here("status", str(folder))
    assert code == 2 and is_one_line(err) and "control_placebo-0/done.json is damaged: rests_on" in err

"""The k largest logits of the teacher, and one number for the rest."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import ONE_AT_A_TIME, kdstudy, with_set
from synthetic import here, is_one_line
from test_training import CPU, PARAMETERS, cached, run, task, weights  # noqa: F401

from kdstudy.config.load import load_study
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import losses
from kdstudy.trainables.losses.soft import Labels
from kdstudy.trainables.settings import ViewSettings
from kdstudy.trainables.teacher_logits import compute
from kdstudy.trainables.top_k import pack, truncate, unpack

CLASSES = 100


@pytest.fixture
def logits():
    """(7, 3, C), as unequal as those of a trained teacher, in numbers that fp16 holds."""
    return (torch.randn(7, 3, CLASSES, generator=torch.Generator().manual_seed(0)) * 4).half()


def test_the_largest_stay_and_the_others_share_their_mass(logits):
    found = truncate(logits, 10)
    order = logits.float().argsort(-1, descending=True)
    for rows in (logits, found):
        assert rows.dtype == torch.float16
    kept, others = order[..., :10], order[..., 10:]
    assert torch.equal(found.gather(-1, kept), logits.gather(-1, kept))
    rest = found.gather(-1, others)
    assert (rest == rest[..., :1]).all()
    # By hand: 90 classes of exp(r) each.
    mass = logits.double().gather(-1, others).exp().sum(-1)
    assert torch.allclose(rest[..., 0].double(), (mass / 90).log(), atol=2e-3)
    probabilities, exact = found.double().softmax(-1), logits.double().softmax(-1)
    assert torch.allclose(probabilities.gather(-1, kept), exact.gather(-1, kept), rtol=4e-3)


def test_it_takes_two_numbers_for_each_logit_that_is_kept_and_one_more(logits):
    packed = pack(logits, 10)
    assert packed.shape == (7, 3, 21) and packed.element_size() == 2
    assert torch.equal(unpack(packed, CLASSES), truncate(logits, 10))
    assert torch.equal(unpack(packed[4, 1:], CLASSES), truncate(logits, 10)[4, 1:])


def test_all_but_one_are_all(logits):
    assert torch.equal(truncate(logits, CLASSES - 1), logits)


def test_classes_beyond_what_a_signed_number_holds_keep_their_place():
    logits = torch.full((1, 60_000), -5.0)
    logits[0, 50_001], logits[0, 3] = 7.0, 6.0
    found = truncate(logits, 2)
    assert found[0].argsort(descending=True)[:2].tolist() == [50_001, 3] and found[0, 0] == -5
    with pytest.raises(ValueError, match=r"at most 65536 classes"):
        pack(torch.zeros(1, 65_537), 2)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_loss_tends_to_the_full_one_as_more_is_kept(logits, temperature):
    """At any temperature; the others never get less than their due."""
    teacher = logits.reshape(-1, CLASSES).float()
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))
    labels = Labels(torch.zeros(len(teacher), dtype=torch.long))

    def loss(teacher):
        return losses.find("hinton")(student, teacher, labels, {"temperature": temperature}).item()

    errors = [abs(loss(truncate(teacher, k).float()) / loss(teacher) - 1) for k in (1, 10, 50, CLASSES - 1)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 and errors[0] > 1e-3
    kept, exact = (F.softmax(rows.float() / temperature, -1).topk(10).values.sum()
                   for rows in (truncate(teacher, 10), teacher))
    assert kept < exact * (1 + 1e-3)


@pytest.mark.parametrize(("top_k", "kept", "width"), [(None, None, 100), (100, None, 100), (400, None, 100),
                                                      (50, None, 100), (49, 49, 99), (10, 10, 21), (1, 1, 3)])
def test_what_is_kept_of_a_hundred(top_k, kept, width):
    """All, where packed ones would take as much room."""
    views = ViewSettings(top_k=top_k)
    assert (views.kept_logits(100), views.logits_width(100)) == (kept, width)


# -- a run ------------------------------------------------------------------------------------------------------------


def truncated(task, keep, live=False):  # noqa: F811
    """The task with the teacher's logits as a study with views.top_k keeps them."""
    own = replace(task, views=task.views.model_copy(update={"top_k": keep}))
    found = compute(task.load_teacher(CPU), partial(own.make_views, view_seed=7, device=CPU), chunk=16, keep=keep)
    return replace(own, teacher=replace(task.teacher, logits={} if live else {7: found}))


def test_a_run_learns_the_same_whether_they_are_stored_or_computed_in_the_loop(task, cached):  # noqa: F811
    stored, live = (weights(run(truncated(task, 1, live))[0]) for live in (False, True))  # of four classes
    assert torch.equal(stored, live)
    assert not torch.equal(stored, weights(run(cached)[0]))
    assert torch.equal(weights(run(truncated(task, 3))[0]), weights(run(cached)[0]))


@pytest.mark.parametrize("name", [name for name, loss in losses.LOSSES.items() if loss.reads == losses.LOGITS])
def test_every_loss_of_logits_takes_them(task, name):  # noqa: F811
    own = {one: losses.PARAMETERS[one].default for one in losses.parameters_of(name)}
    _, metrics = run(truncated(task, 1), {"lr": 3e-3, "alpha": 0.5, "loss": name, **own}, epochs=1)
    assert math.isfinite(metrics["soft_loss"])


# -- a study ----------------------------------------------------------------------------------------------------------


def test_a_study_without_the_setting_is_the_study_that_it_was(tmp_path):
    plain, all_of_them, few = (Study(load_study("digits", settings, smoke=True), Storage(tmp_path / "s"))
                               for settings in ((), ("views.top_k=10",), ("views.top_k=3",)))
    logits = [study.stages["teacher_logits"] for study in (plain, all_of_them, few)]
    assert [stage.logits_bytes for stage in logits] == [logits[0].logits_bytes] * 2 + [logits[0].logits_bytes * 7 // 10]
    folders = [{name: stage.folder.path.name for name, stage in study.stages.items() if name in ("teacher", "baseline")}
               for study in (plain, all_of_them, few)]
    assert folders[0] == folders[1] == folders[2]


@pytest.mark.parametrize(("stage", "settings"), [
    ("self_logits", ["controls.kinds=['self']"]), ("teacher_2_logits", ["teacher.replicates=2"]),
    ("audit_logits", ["audit.seeds=2", "audit.baseline_batch_size=72"]), ("teacher_logits", []),
    ("teacher_logits.brief", ["teachers.brief.epochs=2", "search.teacher={choice=['main','brief']}"])])
def test_each_teachers_logits_are_others_where_fewer_are_kept(tmp_path, monkeypatch, stage, settings):
    def inputs(*more):
        study = Study(load_study("digits", (*settings, *more), smoke=True), Storage(tmp_path / "s"))
        for one in study.stages.values():  # as if the teachers had been trained
            done = {"weights": "any", "members": []}
            monkeypatch.setattr(type(one), "done", property(lambda self, done=done: done), raising=False)
            monkeypatch.setattr(type(one), "weights_hash", "any", raising=False)
        return study.stages[stage].inputs()

    assert inputs("views.top_k=10") != inputs("views.top_k=3")


@pytest.mark.slow
def test_a_study_keeps_the_largest_and_says_so(finished, tmp_path):
    shutil.copytree(finished[0].parent, tmp_path / "studies")
    printed = kdstudy("run", *ONE_AT_A_TIME, *with_set(["views.top_k=3"]), cwd=tmp_path).stdout
    assert "the 3 largest logits of 10" in " ".join(printed.split())
    folder = tmp_path / "studies" / "digits-smoke"
    new = sorted(path.parent.name.rsplit("-", 1)[0] for path in folder.glob("*/done.json")
                 if not (finished[0] / path.parent.name).exists())
    assert new == ["confirm", "distill", "teacher_logits"]
    stages = json.loads((folder / "stages.json").read_text())["stages"]
    array = np.load(next((folder / stages["teacher_logits"]).glob("views-*.npy")))
    assert array.dtype == np.int16 and array.shape[2] == 7
    code, _, err = here("logits", str(folder), str(tmp_path / "logits.safetensors"))
    assert code == 2 and is_one_line(err) and "views.top_k = 3" in err


def test_plan_says_what_is_stored_and_what_would_fit(tmp_path, monkeypatch):
    code, printed, _ = here("plan", "digits", "--smoke", "--dir", str(tmp_path / "s"), *with_set(["views.top_k=3"]))
    assert code == 0 and "30 views × 108 images × 3 view seeds, the 3 largest logits of 10, 133 KiB" in printed
    monkeypatch.setattr("kdstudy.stages.teacher_logits.FEW", 3)
    whole = 2 * 30 * 108 * 3 * 10 / 2**30
    for share, said in ((0.8, "loop instead (views.top_k = 3 would need 133 KiB)"), (0.6, "loop instead")):
        config = load_study("digits", (f"views.cache_gib={share * whole}",), smoke=True)
        stage = Study(config, Storage(tmp_path / "s")).stages["teacher_logits"]
        assert f"{stage.show_size(stage.fits)}{stage.show_remedy()}".endswith(said)

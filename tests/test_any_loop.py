"""One trainable for trials of all loops, without Ray: its object store is a list here."""

from dataclasses import replace

import pytest

from kdstudy.trainables import any_loop
from kdstudy.trainables.any_loop import LOOPS, AnyLoopTrainable
from kdstudy.trainables.loop import Training
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Member, Task, Teacher

MODEL = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)
PARAMETERS = {
    "teacher": {"lr": 1e-3}, "baseline": {"lr": 1e-3}, "distill": {"lr": 1e-3, "temperature": 4.0, "alpha": 0.5},
    "teacher_logits": {"first_view": 0, "view_count": 2},
}


@pytest.fixture
def task(images):
    plain = Task(images, images, 4, 8, MODEL, TrainSettings(epochs=2, batch_size=16), ViewSettings(shift=1), 1,
                 keep_weights=True)
    weights = {name: tensor.numpy() for name, tensor in plain.build_model(MODEL, seed=5).net.state_dict().items()}
    return replace(plain, teacher=Teacher((Member(MODEL, plain.training, weights),)))


@pytest.fixture
def fetched(monkeypatch, task):
    """The references whose tasks the trainable has fetched."""
    references = []
    monkeypatch.setattr(any_loop, "fetch_task", lambda reference: references.append(reference) or task)
    monkeypatch.setattr(any_loop, "where_it_runs", lambda: "host 1a2b3c4d")
    return references


def config(loop, stage=None, number=0, opened=1):
    stage = stage or loop
    return {"loop": loop, "stage": stage, "task": f"the task of {stage}, opened {opened}", "number": number,
            "parameters": PARAMETERS[loop], "seed": 1, "view_seed": 7, "checkpoint": None}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_trial_runs_the_loop_that_its_config_names(fetched, loop, tmp_path):
    trainable = AnyLoopTrainable(config(loop, stage="a stage of any name"))
    report = trainable.step()
    assert report["failure"] is None and report["epoch"] == 1 and report["where"] == "host 1a2b3c4d"
    assert report.get("soft_loss", 0) is None or loop in ("distill", "teacher_logits")
    trainable.save_checkpoint(str(tmp_path))
    assert (tmp_path / "training.json").exists()
    assert (tmp_path / ("views.npy" if loop == "teacher_logits" else "model.safetensors")).exists()


def test_a_worker_fetches_the_task_of_a_stage_once(fetched):
    trainable = AnyLoopTrainable(config("baseline"))
    for loop, stage in (("distill", "distill"), ("distill", "finalists"), ("baseline", "baseline"),
                        ("distill", "finalists")):
        assert trainable.reset_config(config(loop, stage)) and trainable.failure is None
        assert isinstance(trainable.training, Training)
    assert len(fetched) == 3


def test_a_stage_that_is_opened_again_has_another_task(fetched):
    trainable = AnyLoopTrainable(config("distill"))
    for opened in (1, 2, 2):
        assert trainable.reset_config(config("distill", opened=opened)) and trainable.failure is None
    assert fetched == ["the task of distill, opened 1", "the task of distill, opened 2"]

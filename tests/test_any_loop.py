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
def fetched(monkeypatch):
    """The tasks that the trainable has fetched."""
    tasks = []
    monkeypatch.setattr(any_loop, "fetch_task", lambda task: tasks.append(task) or task)
    monkeypatch.setattr(any_loop, "where_it_runs", lambda: "host 1a2b3c4d")
    return tasks


def config(task, loop, stage=None, number=0):
    return {"loop": loop, "stage": stage or loop, "task": task, "number": number, "parameters": PARAMETERS[loop],
            "seed": 1, "view_seed": 7, "checkpoint": None}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_trial_runs_the_loop_that_its_config_names(task, fetched, loop, tmp_path):
    trainable = AnyLoopTrainable(config(task, loop, stage="a stage of any name"))
    report = trainable.step()
    assert report["failure"] is None and report["epoch"] == 1 and report["where"] == "host 1a2b3c4d"
    assert report.get("soft_loss", 0) is None or loop in ("distill", "teacher_logits")
    trainable.save_checkpoint(str(tmp_path))
    assert (tmp_path / "training.json").exists()
    assert (tmp_path / ("views.npy" if loop == "teacher_logits" else "model.safetensors")).exists()


def test_a_worker_fetches_the_task_of_a_stage_once(task, fetched):
    trainable = AnyLoopTrainable(config(task, "baseline"))
    for loop, stage in (("distill", "distill"), ("distill", "finalists"), ("baseline", "baseline"),
                        ("distill", "finalists")):
        assert trainable.reset_config(config(task, loop, stage)) and trainable.failure is None
        assert isinstance(trainable.training, Training)
    assert len(fetched) == 3

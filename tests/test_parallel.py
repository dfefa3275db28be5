"""A teacher that several workers train together: two processes on this machine's CPUs, joined by gloo."""

import json
import os
import signal
import subprocess
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from running import KDSTUDY, kdstudy, wait_until, with_set
from safetensors.numpy import load_file

from kdstudy.config.load import load_study
from kdstudy.config.sections import ResourceSettings
from kdstudy.errors import UserError
from kdstudy.trainables.ddp import ParallelTraining
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Task, start
from kdstudy.tune.cluster import share

TOGETHER = with_set(["resources.teacher_workers=2", "teacher.epochs=16"])
PARAMETERS, SEEDS = {"lr": 1e-3}, {"seed": 5, "view_seed": 7}


# All that changes what the processes exchange and when: the head alone at first, several batches per update, a norm.
RECIPE = {"freeze": 1, "accumulate": 2, "clip_grad": 0.3, "ema": 0.6, "layer_decay": 0.8, "label_smoothing": 0.1}


def task(images=21, **settings):
    """Batches of 8, 8 and 5: the last cannot be halved."""
    draw = np.random.default_rng(0)

    def some(count):
        return ImageSet(draw.integers(0, 255, (count, 1, 8, 8), dtype=np.uint8), draw.integers(0, 3, count))

    model = ModelSettings(model="vit_tiny_patch16_224",
                          args={"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2})
    return Task(train=some(images), validation=some(10), classes=3, image_size=8, model=model,
                training=TrainSettings(epochs=3, batch_size=8, **settings), views=ViewSettings(shift=1, mixup=0.3),
                report_every=1)


TASKS = {"21": {"images": 21}, "25": {"images": 25}, "recipe": RECIPE}


def take_part(rank, size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for name, settings in TASKS.items():
        training = start(task(**settings), PARAMETERS, **SEEDS, kind=ParallelTraining)
        training.join_group()
        report = training.run(3)
        if rank == 0:
            (folder / name).mkdir()
            training.save(folder / name)
            (folder / name / "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """For each task, a folder with the model and the last report of two processes."""
    folder = tmp_path_factory.mktemp("together")
    mp.spawn(take_part, (2, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_take_the_steps_that_one_takes(trained_by_two, name):
    """Also where a last batch of one is left for two: 25 images in batches of 8, the last of which then has 9."""
    alone = start(task(**TASKS[name]), PARAMETERS, **SEEDS)
    expected = alone.run(3)
    report = json.loads((trained_by_two / name / "report.json").read_text())
    assert report["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    together = load_file(trained_by_two / name / "model.safetensors")
    for key, weight in alone.result.net.state_dict().items():
        assert torch.allclose(torch.from_numpy(together[key]), weight, atol=2e-4), key


def test_more_workers_than_there_is_room_for_are_refused():
    with pytest.raises(UserError, match=r"^resources\.teacher_workers = 5 is more than the 4 that fit, "
                                        "each with 2 CPU and 1 GPU; make it smaller$"):
        share(ResourceSettings(cpus_per_trial=2, teacher_workers=5), [(4, 4), (4, 2)])


def teacher_events(folder):
    (record,) = folder.glob("teacher-*/record.jsonl")
    return [json.loads(line) for line in record.read_text().splitlines()]


@pytest.mark.slow
def test_a_teacher_trained_by_two_goes_on_from_its_checkpoint_after_a_kill(tmp_path):
    command = [*KDSTUDY, "run", "digits", "--smoke", "--dir", "mine", "--until", "teacher", *TOGETHER]
    folder = tmp_path / "mine"
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(driver, lambda: any(folder.glob("teacher-*/record.jsonl"))
               and any(event["event"] == "checkpoint" for event in teacher_events(folder)))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = teacher_events(folder)
    assert before[-1].get("decision") != "complete"
    kdstudy(*command[3:], cwd=tmp_path)
    events = teacher_events(folder)
    assert events[: len(before)] == before
    reports = Counter(event["epoch"] for event in events if event["event"] == "report")
    assert set(reports) == set(range(1, 17)) and max(reports.values()) == 1
    assert not any(event["event"] == "mismatch" for event in events)
    saved = max(event["epoch"] for event in before if event["event"] == "checkpoint")
    again = [event for event in events[len(before):] if event["event"] == "report"]
    assert saved > 1 and min(event["epoch"] for event in again) > saved


@pytest.mark.slow
def test_a_teacher_trained_by_two_is_as_good_and_serves_every_later_stage(tmp_path):
    accuracies = {}
    for name, settings in (("two", TOGETHER), ("one", with_set(["teacher.epochs=16"]))):
        (tmp_path / name).mkdir()
        kdstudy("run", "digits", "--smoke", "--dir", "mine", *settings, cwd=tmp_path / name)
        (predictions,) = (tmp_path / name).glob("mine/teacher_logits-*/test.parquet")
        predictions = pd.read_parquet(predictions)
        accuracies[name] = (predictions["label"] == predictions["prediction"]).mean()
    noise = np.sqrt(0.05 * 0.95 / 360 * 2)  # of a difference of two models that are right in 95 % of 360 images
    assert abs(accuracies["two"] - accuracies["one"]) < 3 * noise
    assert min(accuracies.values()) > 0.9
    done = tmp_path / "two" / "mine"
    assert {path.parent.name.rsplit("-", 1)[0] for path in done.glob("*/done.json")} == {
        "teacher", "baseline", "teacher_logits", "distill", "confirm_baseline", "confirm"}
    shown = kdstudy("export", "mine", "out", "--model", "teacher", cwd=tmp_path / "two").stdout
    assert f"{100 * accuracies['two']:.2f} % test accuracy" in shown


def test_the_number_of_workers_changes_no_stage_of_a_study():
    """It is a resource: what is done stays done."""
    assert load_study("digits", ["resources.teacher_workers=4"]).teacher == load_study("digits").teacher

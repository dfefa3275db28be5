"""What only a GPU can show. Skipped where there is none."""

import pytest
import torch
from running import kdstudy, results_of

from kdstudy.trainables.device import autocast_dtype, release_memory
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Task, start

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
MODEL = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)


def begin(images, **training):
    settings = TrainSettings(epochs=2, batch_size=16, **training)
    task = Task(images, images, 4, 8, MODEL, settings, ViewSettings(shift=1), 1)
    return start(task, {"lr": 1e-3}, seed=1, view_seed=1)


def test_images_lie_on_the_gpu_and_convolutions_run_in_bf16_channels_last(images):
    training = begin(images)
    assert training.train.images.is_cuda and training.validation.images.is_cuda
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    assert training.autocast == (torch.bfloat16 if supported else None)
    assert autocast_dtype(TrainSettings(precision="fp32"), training.device) is None
    assert training.model.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert training.run(2)["epoch"] == 2


def test_a_run_in_fp32_repeats_itself_after_a_checkpoint(images, tmp_path):
    whole = begin(images, precision="fp32")
    whole.run(2)
    half = begin(images, precision="fp32")
    half.run(1)
    half.save(tmp_path)
    resumed = begin(images, precision="fp32")
    resumed.load(tmp_path)
    resumed.run(1)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_memory_is_free_again_after_a_run(images):
    release_memory()
    before = torch.cuda.memory_allocated()
    training = begin(images)
    training.run(1)
    assert torch.cuda.memory_allocated() > before
    del training
    release_memory()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_a_compiled_model_trains_and_is_saved_under_its_own_names(images, tmp_path):
    training = begin(images, compile=True)
    training.run(1)
    training.save(tmp_path)
    plain = begin(images)
    plain.load(tmp_path)
    assert plain.epoch == 1


def test_two_trials_share_a_gpu_and_the_study_ends(tmp_path):
    kdstudy("run", "digits", "--smoke", "--set", "resources.gpus_per_trial=0.5", cwd=tmp_path)
    results = results_of(tmp_path / "studies" / "digits-smoke")
    assert results["gain"] and "GPU" in results["machine"]

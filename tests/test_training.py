"""One training run: resumable, repeatable, and the same with cached and live teacher."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdstudy.trainables.device import to_device
from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.logits_pieces import LogitsPiece
from kdstudy.trainables.loop import Training, batches
from kdstudy.trainables.losses import LOSSES, TOKEN, USUAL
from kdstudy.trainables.losses import PARAMETERS as LOSS_PARAMETERS
from kdstudy.trainables.losses.hinton import hinton
from kdstudy.trainables.predictions import write_predictions
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Member, Task, Teacher, start
from kdstudy.trainables.teacher_logits import LiveLogits, compute, held_out

CPU = torch.device("cpu")
STUDENT = ModelSettings(model="vit_tiny_patch16_224", args={
    "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "global_pool": "avg", "class_token": False,
    "drop_path_rate": 0.1})
TOKEN_STUDENT = ModelSettings(model="deit_tiny_distilled_patch16_224", args={
    "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2})
TEACHER = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)
PARAMETERS = {"lr": 3e-3, "temperature": 4.0, "alpha": 0.5}


@pytest.fixture
def task(images):
    training = TrainSettings(epochs=6, batch_size=10, precision="fp32")
    plain = Task(images, images, 4, 8, STUDENT, training, ViewSettings(shift=1, mixup=0.5), 2)
    teacher = plain.build_model(TEACHER, seed=5)
    weights = {name: tensor.numpy() for name, tensor in teacher.net.state_dict().items()}
    return replace(plain, teacher=Teacher((Member(TEACHER, training, weights),)))


@pytest.fixture
def cached(task):
    logits = compute(task.load_teacher(CPU), partial(task.make_views, view_seed=7, device=CPU), chunk=16)
    return replace(task, teacher=replace(task.teacher, logits={7: logits}))


def weights(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()])


def run(task, parameters=PARAMETERS, epochs=6, **seeds):
    training = start_distillation(task, parameters, **({"seed": 1, "view_seed": 7} | seeds))
    return training, training.run(epochs)


def interrupted(task, folder, epochs):
    """A run that is saved after half of its epochs, and gone on with by another that had begun differently."""
    half, _ = run(task, epochs=epochs // 2)
    half.save(folder)
    resumed, _ = run(task, epochs=1)
    resumed.load(folder)
    resumed.run(epochs - epochs // 2)
    return resumed


def test_the_same_seeds_give_the_same_weights_and_others_do_not(cached):
    first, report = run(cached)
    second, again = run(cached)
    assert torch.equal(weights(first), weights(second))
    for name in ("train_loss", "hard_loss", "soft_loss", "validation_accuracy", "validation_loss"):
        assert report[name] == again[name]
    assert not torch.equal(weights(first), weights(run(cached, seed=2)[0]))


def test_a_run_that_was_saved_and_loaded_goes_on_as_if_nothing_had_been(cached, tmp_path):
    whole, report = run(cached)
    half, _ = run(cached, epochs=3)
    half.save(tmp_path)
    resumed, _ = run(cached, epochs=1)
    resumed.load(tmp_path)
    assert resumed.epoch == 3
    again = resumed.run(3)
    assert torch.equal(weights(whole), weights(resumed))
    assert again["validation_loss"] == report["validation_loss"] and again["train_loss"] == report["train_loss"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("model", [STUDENT, TEACHER], ids=["transformer", "channels-last convnet"])
@pytest.mark.parametrize("optimizer", ["sgd", "lion", "adamw", "lamb"])
def test_every_optimizer_survives_a_checkpoint(cached, tmp_path, optimizer, model):
    task = replace(cached, training=cached.training.model_copy(update={"optimizer": optimizer}), model=model)
    whole, _ = run(task, epochs=4)
    resumed = interrupted(task, tmp_path, epochs=4)
    assert torch.equal(weights(whole), weights(resumed))


def test_no_batch_of_one_is_left_for_batch_norm(images):
    training = TrainSettings(epochs=1, batch_size=47)
    task = Task(images, images, 4, 8, TEACHER, training, ViewSettings(), 1)
    run_ = start(task, {"lr": 1e-3}, seed=0, view_seed=0)
    assert run_.run(1)["epoch"] == 1 and run_.steps_per_epoch == 1
    assert [len(part) for part in batches(torch.arange(10), 4)] == [4, 4, 2]
    assert [len(part) for part in batches(torch.arange(9), 4)] == [4, 5]


def test_alpha_zero_is_the_baseline_bit_for_bit(cached):
    distilled, _ = run(cached, PARAMETERS | {"alpha": 0.0})
    baseline = start(replace(cached, teacher=None), {"lr": 3e-3}, seed=1, view_seed=7)
    baseline.run(6)
    assert torch.equal(weights(distilled), weights(baseline))


def test_cached_logits_equal_live_ones_to_fp16(cached):
    rows = torch.tensor([3, 47, 11])
    live = LiveLogits(cached.load_teacher(CPU), partial(cached.make_views, view_seed=7, device=CPU))(4, rows)
    np.testing.assert_allclose(cached.teacher.logits[7][4, rows].astype(np.float32), live.float(), rtol=2e-3, atol=2e-3)
    assert cached.teacher.logits[7].dtype == np.float16 and cached.teacher.logits[7].shape == (6, 48, 4)


AUGMENTED = {
    "crop": ViewSettings(crop_scale=(0.2, 1.0), flip=True), "randaugment": ViewSettings(auto_augment="randaugment"),
    "trivialaugment": ViewSettings(auto_augment="trivialaugment"), "jitter": ViewSettings(brightness=0.4, contrast=0.4),
    "erase": ViewSettings(erase=0.5), "cutmix": ViewSettings(cutmix=1.0),
    "light": ViewSettings(augment="light"), "timm": ViewSettings(augment="timm"), "deit": ViewSettings(augment="deit"),
}


@pytest.mark.parametrize("ahead", [0, 2**26])
@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_cached_logits_are_of_what_the_student_sees(task, views, ahead, monkeypatch):
    """Against the teacher's own logits for the very images that the student's views hand out, at the teacher's size."""
    monkeypatch.setattr("kdstudy.trainables.views.RENDER_AHEAD_BYTES", ahead)
    task = replace(task, views=views)
    ((teacher, _),) = loaded = task.load_teacher(CPU)
    make_views = partial(task.make_views, view_seed=7, device=CPU)
    cached = compute(loaded, make_views, chunk=16, only=range(3, 4))[0]
    order = torch.from_numpy(np.random.default_rng(0).permutation(48))
    with torch.no_grad():
        for rows in order.split(10):
            seen = teacher(make_views(teacher.size).batch(3, rows).images)
            np.testing.assert_allclose(cached[rows].astype(np.float32), seen, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("erase_teacher", [True, False])
def test_erasing_may_be_the_students_alone(task, tmp_path, erase_teacher):
    whole = replace(task, unlabelled=task.train, unlabelled_ratio=1.0)
    erased = replace(whole, views=ViewSettings(shift=1, mixup=0.5, erase=1.0, erase_teacher=erase_teacher))
    for name, each in (("whole", whole), ("erased", erased)):
        (tmp_path / name).mkdir()
        piece = LogitsPiece(each, first_view=2, view_count=1, view_seed=7)
        piece.run(1)
        piece.save(tmp_path / name)
    for kind in ("views.npy", "unlabelled.npy"):
        one, other = (np.load(tmp_path / name / kind) for name in ("whole", "erased"))
        assert np.array_equal(one, other) != erase_teacher
    rows = torch.arange(48)
    runs = [start_distillation(each, PARAMETERS, seed=1, view_seed=7) for each in (whole, erased)]
    for live in ("targets", "unlabelled_targets"):
        one, other = (getattr(each.objective, live)(2, rows) for each in runs)
        assert torch.equal(one, other) != erase_teacher
    for views in (lambda each: each.train, lambda each: each.objective.unlabelled):
        assert not torch.equal(*(views(each).batch(2, rows).images for each in runs))


@pytest.mark.parametrize("logits_cached", [True, False])
def test_an_augmented_run_that_was_saved_goes_on_as_if_nothing_had_been(task, tmp_path, logits_cached):
    task = replace(task, views=ViewSettings(augment="deit", hue=0.1, shift=1))
    if logits_cached:
        logits = compute(task.load_teacher(CPU), partial(task.make_views, view_seed=7, device=CPU))
        task = replace(task, teacher=replace(task.teacher, logits={7: logits}))
    whole, _ = run(task, epochs=4)
    assert torch.equal(weights(whole), weights(interrupted(task, tmp_path, epochs=4)))


def test_cached_and_live_teacher_train_the_same_student(cached):
    """Live logits, computed in the cache's own chunks, against the cache: the weights after three epochs."""

    class InChunks(LiveLogits):
        def __call__(self, view, indices):
            chunks = torch.arange(48).split(16)
            return torch.cat([super(InChunks, self).__call__(view, rows) for rows in chunks])[indices]

    with_cache, _ = run(cached, epochs=3)
    live = start_distillation(cached, PARAMETERS, seed=1, view_seed=7)
    targets = InChunks(cached.load_teacher(CPU), partial(cached.make_views, view_seed=7, device=CPU))
    live.objective = replace(live.objective, targets=targets)
    live.run(3)
    assert (weights(with_cache) - weights(live)).abs().max() < 1e-4


def test_without_a_cache_the_teacher_computes_its_logits_in_the_loop(task, cached):
    with_cache, report = run(cached)
    live, again = run(task)
    assert (weights(with_cache) - weights(live)).abs().max() < 2e-2
    assert again["soft_loss"] == pytest.approx(report["soft_loss"], rel=1e-2)


def test_the_teacher_is_left_alone(task):
    training, _ = run(task, epochs=2)
    ((teacher, _),) = training.objective.targets.teacher
    assert not teacher.training
    for name, tensor in teacher.net.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), task.teacher.members[0].weights[name])
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_agreement_is_how_often_student_and_teacher_say_the_same(cached):
    said = held_out(cached.load_teacher(CPU), *to_device(cached.validation, CPU)).argmax(1).numpy()
    task = replace(cached, teacher=replace(cached.teacher, validation_predictions=said))
    training, report = run(task)
    own = training.validation.logits(training.model).argmax(1).numpy()
    assert report["agreement"] == pytest.approx((own == said).mean())
    assert report["validation_accuracy"] == pytest.approx((own == cached.validation.labels).mean())


def test_the_learning_rate_warms_up_and_falls_over_all_epochs(images):
    training = TrainSettings(epochs=10, batch_size=48, warmup=0.2)
    run_ = start(Task(images, images, 4, 8, STUDENT, training, ViewSettings(), 1), {"lr": 1e-2}, seed=0, view_seed=0)
    rates = [run_.train_epoch()["lr"] for _ in range(10)]
    warm = [0.0, 0.5e-2]
    cosine = [0.5e-2 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    np.testing.assert_allclose(rates, warm + cosine, rtol=1e-6, atol=1e-12)


def test_a_loss_that_explodes_ends_the_run_at_once(images):
    training = TrainSettings(epochs=50, batch_size=16, optimizer="sgd")
    task = Task(images, images, 4, 8, STUDENT, training, ViewSettings(), 50)
    report = start(task, {"lr": 1e30}, seed=0, view_seed=0).run(50)
    assert report["epoch"] < 5 and not np.isfinite(report["train_loss"])


def test_searched_training_settings_reach_the_run(images):
    task = Task(images, images, 4, 8, STUDENT, TrainSettings(epochs=2), ViewSettings(), 1)
    run_: Training = start(task, {"lr": 1e-3, "weight_decay": 0.3, "optimizer": "sgd", "batch_size": 5}, seed=0,
                           view_seed=0)
    assert run_.steps_per_epoch == 10 and isinstance(run_.optimizer, torch.optim.SGD)
    assert max(group["weight_decay"] for group in run_.optimizer.param_groups) == 0.3


def test_predictions_are_saved_with_labels_and_logits(cached, tmp_path):
    import pandas as pd

    training, _ = run(cached)
    write_predictions(training.model, cached.validation, tmp_path / "test.parquet")
    table = pd.read_parquet(tmp_path / "test.parquet")
    logits = np.stack(table["logits"])
    assert logits.dtype == np.float16 and logits.shape == (48, 4)
    np.testing.assert_array_equal(table["label"], cached.validation.labels)
    assert (logits.argmax(1) == table["prediction"]).mean() > 0.95


def test_weights_are_saved_under_timms_own_names(cached, tmp_path):
    import timm

    training, _ = run(cached, epochs=1)
    training.save(tmp_path)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=4, **STUDENT.args)
    assert set(load_file(tmp_path / "model.safetensors")) == set(plain.state_dict())


# -- images without labels, several teachers --------------------------------------------------------------------------


@pytest.fixture
def with_unlabelled(task, images):
    """The first 20 images with labels, the others without, and labels there that are all wrong."""
    labelled, rest = images.take(np.arange(20)), images.take(np.arange(20, 48))
    return replace(task, train=labelled, unlabelled=replace(rest, labels=(rest.labels + 1) % 4), unlabelled_ratio=2.0)


def test_images_without_labels_leave_the_baseline_alone_bit_for_bit(with_unlabelled):
    nothing, _ = run(with_unlabelled, PARAMETERS | {"alpha": 0.0})
    baseline = start(replace(with_unlabelled, unlabelled=None, teacher=None), {"lr": 3e-3}, seed=1, view_seed=7)
    baseline.run(6)
    assert torch.equal(weights(nothing), weights(baseline))


def test_of_images_without_labels_nobody_sees_the_labels(with_unlabelled):
    other = replace(with_unlabelled.unlabelled, labels=with_unlabelled.unlabelled.labels * 0)
    first, report = run(with_unlabelled)
    second, _ = run(replace(with_unlabelled, unlabelled=other))
    assert torch.equal(weights(first), weights(second))
    without, alone = run(replace(with_unlabelled, unlabelled=None))
    assert not torch.equal(weights(first), weights(without)) and report["soft_loss"] != alone["soft_loss"]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains_on_mixed_images_beside_others_without_labels(with_unlabelled, loss):
    if LOSSES[loss].reads == TOKEN:
        with_unlabelled = replace(with_unlabelled, model=TOKEN_STUDENT)
    parameters = PARAMETERS | {"loss": loss, **{name: one.default for name, one in LOSS_PARAMETERS.items()}}
    report = start_distillation(with_unlabelled, parameters, seed=1, view_seed=7).run(1)
    usual = start_distillation(with_unlabelled, PARAMETERS, seed=1, view_seed=7).run(1)
    assert np.isfinite(report["soft_loss"]) and report["soft_loss"] > 0
    same = {key: report[key] == usual[key] for key in ("train_loss", "soft_loss")}
    assert set(same.values()) == {loss == USUAL}
    assert report["train_loss"] == pytest.approx(0.5 * (report["hard_loss"] + report["soft_loss"]), rel=1e-5)


def test_a_loss_of_ones_own_trains_and_what_it_returns_is_checked(cached, tmp_path, monkeypatch):
    (tmp_path / "own_loss_in_training.py").write_text(
        "def mine(student_logits, teacher_logits, labels, *, temperature):\n"
        "    return ((student_logits - teacher_logits) ** 2).mean()\n"
        "def each(student_logits, teacher_logits, labels, *, temperature):\n"
        "    return ((student_logits - teacher_logits) ** 2).mean(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="loss = 'own_loss_in_training:mine' is not a loss of this study's settings"):
        start_distillation(cached, PARAMETERS | {"loss": "own_loss_in_training:mine"}, seed=1, view_seed=7)
    assert "own_loss_in_training" not in sys.modules
    cached = replace(cached, own_losses=("own_loss_in_training:mine", "own_loss_in_training:each"))
    own, mse = (start_distillation(cached, PARAMETERS | {"loss": loss}, seed=1, view_seed=7).run(1)
                for loss in ("own_loss_in_training:mine", "mse"))
    assert own["soft_loss"] == mse["soft_loss"]
    with pytest.raises(ValueError, match="loss = 'own_loss_in_training:each' returned a tensor"):
        start_distillation(cached, PARAMETERS | {"loss": "own_loss_in_training:each"}, seed=1, view_seed=7).run(1)


def test_the_soft_loss_is_the_mean_over_all_images_the_hard_one_over_those_with_labels(with_unlabelled):
    task = replace(with_unlabelled, views=ViewSettings(), training=with_unlabelled.training.model_copy(
        update={"batch_size": 20, "warmup": 0.0}), model=STUDENT.model_copy(
        update={"args": STUDENT.args | {"drop_path_rate": 0.0}}))
    training = start_distillation(task, PARAMETERS, seed=1, view_seed=7)
    both = np.concatenate([task.train.images, task.unlabelled.images])
    images = torch.from_numpy(both).float() / 255
    with torch.no_grad():
        student = training.model(images)
        teacher = training.objective.targets
        said = torch.cat([teacher(0, torch.arange(20)), training.objective.unlabelled_targets(0, torch.arange(28))])
    order = training._unlabelled_parts([torch.arange(20)])[0]  # 40 of 28: some come twice
    assert len(order) == 40 and set(order.tolist()) == set(range(28))
    rows = torch.cat([torch.arange(20), 20 + order])
    expected = hinton(student[rows], said[rows].float(), 4.0).item()
    hard = torch.nn.functional.cross_entropy(student[:20], torch.from_numpy(task.train.labels)).item()
    metrics = training.train_epoch()
    assert metrics["soft_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["hard_loss"] == pytest.approx(hard, rel=1e-4)


@pytest.mark.parametrize("views", [ViewSettings(shift=1), ViewSettings(scale=0.1)])
def test_a_batch_may_be_too_small_for_any_image_without_label(with_unlabelled, monkeypatch, views):
    monkeypatch.setattr("kdstudy.trainables.views.RENDER_AHEAD_BYTES", 0)  # as for a large data set
    _, report = run(replace(with_unlabelled, unlabelled_ratio=0.12, views=views, training=TrainSettings(
        epochs=2, batch_size=9)), epochs=2)  # batches of 9, 9 and 2
    assert report["epoch"] == 2


def test_with_images_without_labels_a_run_resumes_exactly(with_unlabelled, tmp_path):
    views = {"view_seed": 7, "device": CPU}
    teacher = with_unlabelled.load_teacher(CPU)
    task = replace(with_unlabelled, teacher=replace(
        with_unlabelled.teacher, logits={7: compute(teacher, partial(with_unlabelled.make_views, **views))},
        unlabelled_logits={7: compute(teacher, partial(with_unlabelled.make_unlabelled_views, **views))}))
    whole, _ = run(task)
    resumed = interrupted(task, tmp_path, epochs=6)
    assert torch.equal(weights(whole), weights(resumed))
    live, _ = run(with_unlabelled)
    assert (weights(whole) - weights(live)).abs().max() < 2e-2


def test_the_logits_of_several_teachers_are_averaged_each_at_its_own_size(task):
    small = TEACHER.model_copy(update={"image_size": 24})
    other = {name: tensor.numpy() for name, tensor in task.build_model(small, seed=6).net.state_dict().items()}
    first = task.teacher.members[0]
    second = replace(first, model=small, weights=other, normalised=((0.4,), (0.3,)))
    logits = []
    for members in ((first,), (second,), (first, second)):
        together = replace(task, teacher=Teacher(members))
        teacher = together.load_teacher(CPU)
        live = LiveLogits(teacher, partial(together.make_views, view_seed=7, device=CPU))
        logits.append((live(2, torch.arange(48)).float(), held_out(teacher, *to_device(task.validation, CPU))))
    for one, two, mean in zip(*logits, strict=True):
        assert (one - two).abs().max() > 0.01
        np.testing.assert_allclose(mean, (one + two) / 2, atol=2e-3, rtol=2e-3)

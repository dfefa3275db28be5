"""Losses that read more than logits: the teacher's features through a projection, and a distillation token."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_training import CPU, STUDENT, TEACHER, TOKEN_STUDENT, cached, run, task, weights  # noqa: F401
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.task.token_distillation import TokenDistillationTask

from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.logits_pieces import LogitsPiece
from kdstudy.trainables.loop import PROJECTION
from kdstudy.trainables.losses import FEATURES, LOSSES, TOKEN, SoftLoss
from kdstudy.trainables.losses.hinton import hinton
from kdstudy.trainables.predictions import plain_logits
from kdstudy.trainables.reading import FeatureReader, make_projection
from kdstudy.trainables.settings import TrainSettings
from kdstudy.trainables.task import Teacher, start
from kdstudy.trainables.teacher_logits import LiveLogits, compute, compute_with_features

OF_FEATURES = {"lr": 3e-3, "alpha": 0.5, "loss": "features"}
OF_TOKEN = {"lr": 3e-3, "alpha": 0.5, "loss": "token-hard"}
SEEDS = {"seed": 1, "view_seed": 7}


@pytest.fixture
def with_features(task):  # noqa: F811
    views = partial(task.make_views, view_seed=7, device=CPU)
    logits, features = compute_with_features(task.load_teacher(CPU), views, chunk=16)
    return replace(task, teacher=replace(task.teacher, logits={7: logits}, features={7: features}))


@pytest.fixture
def with_token(cached):  # noqa: F811
    return replace(cached, model=TOKEN_STUDENT)


def batch(task, count=6):  # noqa: F811
    return torch.from_numpy(task.train.images[:count]).float() / 255


# ---------------------------------------------------------------------------------------------------------------------
# The features


def test_features_and_logits_are_those_that_timms_task_reads(task):  # noqa: F811
    student = task.build_model(STUDENT, seed=3).eval()
    projection = make_projection(24, 8, seed=4)
    images = batch(task)
    timms = FeatureDistillationTrainableModule(student.net, projection)((images - student.shift) / student.divisor)
    ours = FeatureReader(student, projection)(images)
    assert all(torch.equal(*pair) for pair in zip(ours, timms, strict=True))
    assert ours[1].shape == (6, 8) and torch.equal(ours[0], student(images))


def test_the_loss_is_the_mean_squared_difference_of_projected_and_teachers_features(with_features):
    training = start_distillation(with_features, OF_FEATURES, **SEEDS)
    rows = torch.arange(10)
    training.model.eval()  # without drop path, so that the same pass can be computed again
    loss = training._loss(rows, None)
    net, seen = training.model.net, training.train.batch(0, rows)
    pooled = net.forward_head(net.forward_features((seen.images - 0.5) / 0.5), pre_logits=True).detach().numpy()
    projected = pooled @ training.projection.weight.detach().numpy().T + training.projection.bias.detach().numpy()
    expected = ((projected - with_features.teacher.features[7][0, :10]) ** 2).mean()
    assert loss.soft.item() == pytest.approx(expected, rel=1e-4)
    assert loss.total.item() == pytest.approx(0.5 * loss.hard.item() + 0.5 * expected, rel=1e-4)


def test_the_gradient_reaches_projection_and_body_but_the_head_learns_from_labels_alone(with_features):
    training = start_distillation(with_features, OF_FEATURES | {"alpha": 1.0}, **SEEDS)
    training._loss(torch.arange(10), None).total.backward()
    assert training.projection.weight.grad.abs().max() > 0
    assert training.model.net.blocks[0].mlp.fc1.weight.grad.abs().max() > 0
    assert training.model.net.head.weight.grad.abs().max() == 0


def test_the_projection_learns_at_the_learning_rate_itself_whatever_the_layers_have(with_features):
    for settings in ({}, {"layer_decay": 0.5, "head_lr": 3.0}, {"optimizer": "lookahead_adamw"}, {"freeze": 1}):
        changed = TrainSettings.model_validate(with_features.training.model_dump() | {"warmup": 0.0} | settings)
        training = start_distillation(replace(with_features, training=changed), OF_FEATURES, **SEEDS)
        before = training.projection.weight.detach().clone()
        groups = [group for group in training.optimizer.param_groups
                  if any(one is training.projection.weight for one in group["params"])]
        assert len(groups) == 1 and groups[0].get("lr_scale", 1.0) == 1.0 and groups[0]["weight_decay"] == 0.05
        training.run(1)
        assert not torch.equal(before, training.projection.weight)


def test_only_features_of_unlike_widths_are_projected():
    assert list(make_projection(8, 8, seed=0).parameters()) == []
    layer, again, other = (make_projection(24, 8, seed) for seed in (0, 0, 1))
    assert layer.weight.shape == (8, 24) and layer.weight.abs().max() <= 24**-0.5
    assert torch.equal(layer.weight, again.weight) and not torch.equal(layer.weight, other.weight)


def test_the_projection_changes_no_other_random_number(with_features):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    make_projection(24, 8, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    usual = start_distillation(with_features, OF_FEATURES | {"loss": "hinton", "temperature": 4.0}, **SEEDS)
    assert torch.equal(weights(usual), weights(start_distillation(with_features, OF_FEATURES, **SEEDS)))


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"freeze": 2}, {"clip_grad": 0.1, "optimizer": "sgd"}])
def test_a_run_that_was_saved_and_loaded_goes_on_with_its_projection(with_features, tmp_path, settings):
    training = with_features.training.model_copy(update=settings)
    changed = replace(with_features, training=training)
    whole, report = run(changed, OF_FEATURES)
    half, _ = run(changed, OF_FEATURES, epochs=3)
    half.save(tmp_path)
    resumed, _ = run(changed, OF_FEATURES, epochs=1)
    resumed.load(tmp_path)
    again = resumed.run(3)
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(whole.projection.weight, resumed.projection.weight)
    assert again["soft_loss"] == report["soft_loss"]
    plain = timm.create_model("vit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=4, **STUDENT.args)
    assert set(load_file(tmp_path / "model.safetensors")) == set(plain.state_dict())
    assert set(load_file(tmp_path / PROJECTION)) == {"weight", "bias"}


def test_other_losses_save_no_projection(with_features, tmp_path):
    training, _ = run(with_features, OF_FEATURES | {"loss": "hinton", "temperature": 4.0}, epochs=1)
    training.save(tmp_path)
    assert training.projection is None and not (tmp_path / PROJECTION).exists()


def test_cached_features_equal_live_ones_and_the_logits_are_what_they_were(with_features, task):  # noqa: F811
    views = partial(task.make_views, view_seed=7, device=CPU)
    live, rows = LiveLogits(task.load_teacher(CPU), views), torch.tensor([3, 47, 11])
    stored = with_features.teacher.features[7]
    assert stored.dtype == np.float16 and stored.shape == (6, 48, 8)
    np.testing.assert_allclose(stored[4, rows].astype(np.float32), live.features(4, rows).float(), rtol=2e-3, atol=2e-3)
    alone = compute(task.load_teacher(CPU), views, chunk=16)
    np.testing.assert_array_equal(with_features.teacher.logits[7], alone)


def test_cached_and_live_features_train_the_same_student(with_features, task):  # noqa: F811
    stored, report = run(with_features, OF_FEATURES, epochs=3)
    live, again = run(task, OF_FEATURES, epochs=3)
    assert live.projection.weight.shape == stored.projection.weight.shape
    assert again["soft_loss"] == pytest.approx(report["soft_loss"], rel=1e-2)
    assert (weights(stored) - weights(live)).abs().max() < 2e-2


def test_the_features_of_several_teachers_stand_side_by_side(task):  # noqa: F811
    other = TEACHER.model_copy(update={"args": TEACHER.args | {"channels": [8, 8, 8, 16]}, "image_size": 24})
    second = replace(task.teacher.members[0], model=other, weights={
        name: tensor.numpy() for name, tensor in task.build_model(other, seed=6).net.state_dict().items()})
    found = []
    for members in (task.teacher.members, (second,), (*task.teacher.members, second)):
        together = replace(task, teacher=Teacher(members))
        found.append(LiveLogits(together.load_teacher(CPU), partial(together.make_views, view_seed=7, device=CPU)
                                ).features(2, torch.arange(48)))
    assert torch.equal(torch.cat(found[:2], 1), found[2]) and found[2].shape == (48, 24)
    training, report = run(together, OF_FEATURES, epochs=1)
    assert training.projection is None and report["soft_loss"] > 0  # both are 24 wide
    training, report = run(replace(together, teacher=Teacher((second,))), OF_FEATURES, epochs=1)
    assert training.projection.weight.shape == (16, 24) and report["soft_loss"] > 0


def test_a_piece_keeps_features_only_if_the_task_wants_them(with_features, tmp_path):
    for wanted in (True, False):
        piece = LogitsPiece(replace(with_features, wants_features=wanted), 2, 3, view_seed=7)
        piece.run(1)
        (tmp_path / str(wanted)).mkdir()
        piece.save(tmp_path / str(wanted))
    features = np.load(tmp_path / "True" / "features.npy")
    np.testing.assert_allclose(features.astype(np.float32), with_features.teacher.features[7][2:5].astype(np.float32),
                               rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(np.load(tmp_path / "True" / "views.npy"), np.load(tmp_path / "False" / "views.npy"))
    assert not (tmp_path / "False" / "features.npy").exists()


def test_a_loss_of_features_cannot_take_labels():
    with pytest.raises(ValueError, match="mine cannot take labels"):
        SoftLoss("mine", F.mse_loss, takes_labels=True, reads=FEATURES)


# ---------------------------------------------------------------------------------------------------------------------
# The distillation token


@pytest.mark.parametrize(("loss", "kind"), [("token-hard", "hard"), ("token-soft", "soft")])
def test_the_loss_is_timms_token_distillation(with_token, loss, kind):
    training = start_distillation(with_token, OF_TOKEN | {"loss": loss, "temperature": 3.0, "alpha": 0.3}, **SEEDS)
    rows, student = torch.arange(10), training.model
    seen, logits = training.train.batch(0, rows), training.objective.targets(0, rows).float()
    teacher = torch.nn.Module()
    teacher.normalize_input = lambda images, mean, std: images
    teacher.forward = lambda images: logits
    timms = TokenDistillationTask.__new__(TokenDistillationTask)
    torch.nn.Module.__init__(timms)
    timms.trainable_module, timms.teacher, timms.criterion = student, teacher, F.cross_entropy
    timms.distill_type, timms.temperature, timms.task_loss_weight, timms.distill_loss_weight = kind, 3.0, 0.7, 0.3
    timms.student_mean = timms.student_std = None
    student.train()
    found = timms(seen.images, seen.labels)
    pair = training.reader(seen.images)
    soft = LOSSES[loss](pair[1], logits, None, {"temperature": 3.0})
    assert soft.item() == pytest.approx(found["distill_loss"].item(), rel=1e-5)
    ours = training._loss(rows, None)
    assert ours.soft.item() == pytest.approx(found["distill_loss"].item(), rel=1e-5)
    assert torch.equal(pair[0], found["output"]) and LOSSES[loss].reads == TOKEN


def test_each_head_learns_from_its_own_source(with_token):
    for alpha, learns in ((1.0, "head_dist"), (0.5, "both")):
        training = start_distillation(with_token, OF_TOKEN | {"alpha": alpha}, **SEEDS)
        training.model.train()
        training._loss(torch.arange(10), None).total.backward()
        net = training.model.net
        assert net.head_dist.weight.grad.abs().max() > 0
        assert (net.head.weight.grad.abs().max() > 0) == (learns == "both")


def test_predictions_are_the_mean_of_both_heads_and_plain_timm_makes_the_same(with_token, tmp_path):
    training, _ = run(with_token, OF_TOKEN, epochs=2)
    training.save(tmp_path)
    net = timm.create_model("deit_tiny_distilled_patch16_224", img_size=8, in_chans=1, num_classes=4,
                            **TOKEN_STUDENT.args).eval()
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    model, images = training.model.eval(), torch.from_numpy(with_token.validation.images).float() / 255
    with torch.no_grad():
        known = net.forward_features((images - model.shift) / model.divisor)
        both = (net.head(known[:, 0]) + net.head_dist(known[:, 1])) / 2
    torch.testing.assert_close(plain_logits(model, with_token.validation), both)
    assert not torch.equal(net.head.weight, net.head_dist.weight)


def test_a_run_with_a_token_resumes_exactly(with_token, tmp_path):
    whole, _ = run(with_token, OF_TOKEN, epochs=4)
    half, _ = run(with_token, OF_TOKEN, epochs=2)
    half.save(tmp_path)
    resumed, _ = run(with_token, OF_TOKEN, epochs=1)
    resumed.load(tmp_path)
    resumed.run(2)
    assert torch.equal(weights(whole), weights(resumed))


# ---------------------------------------------------------------------------------------------------------------------
# Both


@pytest.mark.parametrize(("loss", "model"), [("features", STUDENT), ("token-hard", TOKEN_STUDENT),
                                             ("token-soft", TOKEN_STUDENT)])
def test_alpha_zero_is_the_baseline_bit_for_bit(with_features, loss, model):
    changed = replace(with_features, model=model)
    distilled, _ = run(changed, {"lr": 3e-3, "alpha": 0.0, "loss": loss, "temperature": 4.0})
    baseline = start(replace(changed, teacher=None), {"lr": 3e-3}, **SEEDS)
    baseline.run(6)
    assert torch.equal(weights(distilled), weights(baseline)) and distilled.projection is None
    taught, _ = run(changed, {"lr": 3e-3, "alpha": 0.5, "loss": loss, "temperature": 4.0})
    assert not torch.equal(weights(taught), weights(baseline))


def test_a_student_with_a_token_has_the_mean_of_its_heads_in_losses_of_logits(with_token):
    training = start_distillation(with_token, OF_TOKEN | {"loss": "hinton", "temperature": 4.0}, **SEEDS)
    assert training.reader is training.model
    training.model.train()
    rows = torch.arange(10)
    logits = training.model(training.train.batch(0, rows).images)
    expected = hinton(logits, training.objective.targets(0, rows).float(), 4.0)
    assert training._loss(rows, None).soft.item() == pytest.approx(expected.item(), rel=1e-5)

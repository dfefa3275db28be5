"""The training recipe: each setting against a closed form or timm's and torch's own, and all of them over a kill."""

import contextlib
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3

from kdstudy.trainables import models
from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.freezing import body_parameters
from kdstudy.trainables.losses.total import hard_loss
from kdstudy.trainables.models import Classifier, head_names
from kdstudy.trainables.optimizer import check_optimizer, make_optimizer
from kdstudy.trainables.settings import ModelSettings, TrainSettings, ViewSettings
from kdstudy.trainables.task import Member, Task, Teacher, save, start
from kdstudy.trainables.teacher_logits import compute

CPU = torch.device("cpu")
VIT = ModelSettings(model="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2})
CNN = ModelSettings(model="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, image_size=32)
SEEDS = {"seed": 1, "view_seed": 7}
DISTILLED = {"lr": 3e-3, "temperature": 4.0, "alpha": 0.5}


@pytest.fixture
def task(images):
    return Task(images, images, 4, 8, VIT, TrainSettings(epochs=6, batch_size=10, precision="fp32"),
                ViewSettings(shift=1, mixup=0.5), 2)


@pytest.fixture
def distilled(task):
    """The same with a teacher's cached logits."""
    weights = {name: tensor.numpy() for name, tensor in task.build_model(CNN, seed=5).net.state_dict().items()}
    with_teacher = replace(task, teacher=Teacher((Member(CNN, task.training, weights),)))
    logits = compute(with_teacher.load_teacher(CPU), partial(task.make_views, view_seed=7, device=CPU))
    return replace(task, teacher=replace(with_teacher.teacher, logits={7: logits}))


def trained_by(task, **settings):
    return replace(task, training=task.training.model_copy(update=settings))


def begin(task, lr=3e-3, **settings):
    return start(trained_by(task, **settings), {"lr": lr}, **SEEDS)


def state(model):
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def close(one, two, **tolerance):
    return all(torch.allclose(tensor, two[name], **tolerance) for name, tensor in one.items())


# -- learning rates ---------------------------------------------------------------------------------------------------


def by_parameter(optimizer, net):
    """Each parameter's factor on the learning rate and its weight decay, by name."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)]: (group.get("lr_scale", 1.0), group["weight_decay"])
            for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("model", [VIT, CNN, ModelSettings(model="convnext_atto")], ids=["vit", "resnet", "convnext"])
def test_layer_decay_is_timms(task, model):
    classifier = task.build_model(model.model_copy(update={"image_size": 32}))
    settings = TrainSettings(layer_decay=0.7, weight_decay=0.2)
    ours = by_parameter(make_optimizer(classifier, settings, 1e-3), classifier.net)
    theirs = by_parameter(create_optimizer_v2(classifier.net, "adamw", lr=1e-3, weight_decay=0.2, layer_decay=0.7),
                          classifier.net)
    assert ours == theirs and len({scale for scale, _ in ours.values()}) > 3
    head = {name: factors[0] for name, factors in ours.items() if name in head_names(classifier.net)}
    assert set(head.values()) == {1.0}


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_the_heads_learning_rate_is_a_factor_and_nothing_else_changes(task, layer_decay):
    classifier = task.build_model(VIT)
    plain, ours = (by_parameter(make_optimizer(classifier, TrainSettings(layer_decay=layer_decay, head_lr=factor), 1),
                                classifier.net) for factor in (1.0, 10.0))
    assert head_names(classifier.net) == {"head.weight", "head.bias"} and set(plain) == set(ours)
    for name, (scale, decay) in plain.items():
        assert ours[name] == (pytest.approx(scale * (10 if name.startswith("head.") else 1)), decay)


def test_settings_at_their_defaults_give_timms_plain_groups(task):
    classifier = task.build_model(CNN)
    ours = make_optimizer(classifier, TrainSettings(), 1e-3)
    theirs = create_optimizer_v2(classifier.net, "adamw", lr=1e-3, weight_decay=0.05, fused=True)
    assert by_parameter(ours, classifier.net) == by_parameter(theirs, classifier.net)
    assert [len(group["params"]) for group in ours.param_groups] == [len(group["params"])
                                                                     for group in theirs.param_groups]


def test_warm_up_in_epochs_then_a_cosine_to_the_lowest_rate_each_scaled(task):
    run = begin(task, lr=1e-2, batch_size=48, epochs=10, warmup_epochs=2.0, min_lr=1e-3, layer_decay=0.5, head_lr=3.0)
    rates, scaled = [], []
    for _ in range(10):
        rates.append(run.train_epoch()["lr"])
        scaled.append({group["lr_scale"]: group["lr"] for group in run.optimizer.param_groups})
    cosine = [1e-3 + 0.5 * 9e-3 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    np.testing.assert_allclose(rates, [0.0, 0.5e-2, *cosine], rtol=1e-6, atol=1e-12)
    for rate, groups in zip(rates, scaled, strict=True):
        assert set(groups) == {0.5**4, 0.5**3, 0.5**2, 0.5, 3.0}
        assert all(own == pytest.approx(scale * rate, abs=1e-12) for scale, own in groups.items())


# -- the loss and the gradients ---------------------------------------------------------------------------------------


def test_label_smoothing_is_torchs_and_under_mixup_timms():
    generator = torch.Generator().manual_seed(0)
    logits, labels, partners = (torch.randn(6, 5, generator=generator), torch.randint(5, (6,), generator=generator),
                                torch.randint(5, (6,), generator=generator))
    for smoothing in (0.0, 0.1, 0.4):
        assert torch.allclose(hard_loss(logits, labels, label_smoothing=smoothing),
                              F.cross_entropy(logits, labels, label_smoothing=smoothing))
        # timm mixes an image with the one at the other end of the batch.
        target = mixup_target(labels, 5, lam=0.7, smoothing=smoothing)
        ours = hard_loss(logits, labels, labels.flip(0), torch.full((6,), 0.3), smoothing)
        assert torch.allclose(ours, SoftTargetCrossEntropy()(logits, target))
    assert hard_loss(logits, labels, partners, torch.full((6,), 0.3), 0.1) > 0


def test_the_hard_loss_of_both_arms_is_smoothed_and_the_validation_loss_is_not(distilled):
    plain = replace(distilled, views=ViewSettings())
    for begin_arm in (lambda task: start(task, {"lr": 1e-9}, **SEEDS),
                      lambda task: start_distillation(task, {**DISTILLED, "lr": 1e-9}, **SEEDS)):
        run = begin_arm(trained_by(plain, batch_size=48, label_smoothing=0.3))
        with torch.no_grad():
            logits = run.model.eval()(torch.from_numpy(plain.train.images).float() / 255)
        labels = torch.from_numpy(plain.train.labels)
        report = run.run(1)
        assert report["hard_loss"] == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.3).item(), 1e-5)
        assert report["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), 1e-5)


def test_the_gradients_are_clipped_to_the_norm(task):
    one_batch = {"batch_size": 48, "optimizer": "sgd", "warmup": 0.0, "weight_decay": 0.0}
    free, clipped = begin(task, lr=0.1, **one_batch), begin(task, lr=0.1, clip_grad=0.25, **one_batch)
    before = state(free.model)
    assert same(before, state(clipped.model))
    for run in (free, clipped):
        run.train_epoch()
    norm = torch.cat([parameter.grad.flatten() for parameter in free.model.parameters()]).norm().item()
    assert norm > 0.5
    for name, start_at in before.items():
        moved, whole = state(clipped.model)[name] - start_at, state(free.model)[name] - start_at
        assert torch.allclose(moved, whole * 0.25 / norm, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("size", "accumulate"), [(10, 2), (7, 3), (16, 4)])
def test_several_batches_per_update_are_one_large_batch(distilled, size, accumulate):
    """48 images: the last group has fewer batches, or its last batch fewer images, or both."""
    large, several = (start_distillation(trained_by(distilled, batch_size=batch, accumulate=count, clip_grad=1.0,
                                                    optimizer="sgd"), DISTILLED, **SEEDS)
                      for batch, count in ((size * accumulate, 1), (size, accumulate)))
    assert large.steps_per_epoch == several.steps_per_epoch
    for _ in range(6):
        expected, found = large.train_epoch(), several.train_epoch()
        for name in ("train_loss", "hard_loss", "soft_loss", "lr"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
    assert close(state(large.model), state(several.model), rtol=1e-4, atol=1e-6)
    unlike = start_distillation(trained_by(distilled, batch_size=size, optimizer="sgd"), DISTILLED, **SEEDS)
    unlike.run(6)
    assert not close(state(large.model), state(unlike.model), rtol=1e-4, atol=1e-6)


# -- averaged and frozen weights --------------------------------------------------------------------------------------


def test_the_average_is_timms_stepped_by_hand_and_is_what_is_reported_saved_and_tested(images, task, tmp_path):
    tested = replace(task, model=CNN, test=images)
    averaged, plain = (begin(tested, batch_size=48, **settings) for settings in ({"ema": 0.6}, {}))
    by_hand = ModelEmaV3(plain.model, decay=0.6, use_warmup=True)
    for epoch in range(1, 7):  # of one update each
        report, other = averaged.run(1), plain.run(1)
        by_hand.update(plain.model, step=epoch)
        assert same(state(plain.model), state(averaged.model)) and report["train_loss"] == other["train_loss"]
        assert same(state(by_hand.module), state(averaged.result))
        expected = averaged.validation.report(by_hand.module)
        assert report["validation_loss"] == expected["validation_loss"] != other["validation_loss"] or epoch == 1
    save(averaged, tested, tmp_path)
    assert same(load_file(tmp_path / "model.safetensors"), state(by_hand.module))
    assert same(load_file(tmp_path / "raw.safetensors"), state(plain.model))
    logits = averaged.validation.logits(by_hand.module)  # the validation images are the test images here
    saved = np.stack(pd.read_parquet(tmp_path / "test.parquet")["logits"])
    np.testing.assert_allclose(saved.astype(np.float32), logits, atol=2e-2)


def parts_of(run):
    """The state of the head, and of all else, statistics included."""
    head = head_names(run.model.net)
    whole = state(run.model)
    return {name: whole[name] for name in head}, {name: value for name, value in whole.items() if name not in head}


@pytest.mark.parametrize("model", [VIT, CNN], ids=["vit", "batch norm"])
def test_while_it_is_frozen_only_the_head_changes(task, model):
    run = begin(replace(task, model=model), freeze=2, weight_decay=0.5, ema=0.9, epochs=4)
    head, body = parts_of(run)
    run.run(2)
    assert same(body, parts_of(run)[1]) and not same(head, parts_of(run)[0])
    average = state(run.result)
    assert same(body, {name: average[name] for name in body})
    run.run(1)
    changed = {name for name, value in parts_of(run)[1].items() if not torch.equal(value, body[name])}
    assert changed == set(body)


def test_a_linear_probe_leaves_the_body_alone_to_the_end(task):
    run = begin(replace(task, model=CNN), freeze="all", weight_decay=0.5)
    head, body = parts_of(run)
    first = run.run(1)
    last = run.run(5)
    assert same(body, parts_of(run)[1]) and not same(head, parts_of(run)[0])
    assert last["epoch"] == 6 and last["train_loss"] < first["train_loss"]
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == 2


def check_that_only_the_head_moves(task, optimizer):
    classifier = task.build_model(VIT)
    for parameter in body_parameters(classifier.net):
        parameter.requires_grad_(False)
    before = state(classifier)
    optimizer = make_optimizer(classifier, TrainSettings(optimizer=optimizer, weight_decay=0.1, head_lr=2.0), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(classifier(torch.rand(8, 1, 8, 8)), torch.arange(8) % 4).backward()
        optimizer.step()
    moved = {name for name, value in state(classifier).items() if not torch.equal(value, before[name])}
    assert moved and moved <= head_names(classifier.net)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "lion", "lookahead_adam"])
def test_an_optimizer_does_not_move_what_is_frozen(task, optimizer):
    check_that_only_the_head_moves(task, optimizer)


@pytest.mark.slow
def test_no_optimizer_of_timms_moves_what_is_frozen(task):
    tried = 0
    for name in list_optimizers():
        with contextlib.suppress(ValueError):
            check_optimizer(name)
            tried += 1
            check_that_only_the_head_moves(task, name)
    assert tried > 40


def test_a_frozen_run_has_the_dropout_that_was_asked_for(task):
    """In the head's input, where a linear probe is regularised."""
    losses = [begin(task, freeze="all", epochs=1, dropout=rate).run(1)["train_loss"] for rate in (0.0, 0.9)]
    assert losses[0] != losses[1]


def test_drop_rates_are_timms_arguments_and_change_no_initial_weight(task):
    plain, dropping = begin(task), begin(task, drop_path=0.3, dropout=0.2)
    assert same(state(plain.model), state(dropping.model))
    blocks = [block.drop_path1 for block in dropping.model.net.blocks]
    rates = [block.drop_prob for block in blocks if hasattr(block, "drop_prob")]  # the first block's is 0
    assert rates == pytest.approx([0.15, 0.3]) and dropping.model.net.head_drop.p == 0.2
    of_args = begin(replace(task, model=VIT.model_copy(update={"args": {**VIT.args, "drop_path_rate": 0.3,
                                                                        "drop_rate": 0.2}})))
    for run in (dropping, of_args):
        run.run(2)
    assert same(state(dropping.model), state(of_args.model))


# -- all together -----------------------------------------------------------------------------------------------------

WHOLE = {"ema": 0.9, "freeze": 2, "accumulate": 2, "clip_grad": 0.5, "layer_decay": 0.8, "head_lr": 2.0,
         "label_smoothing": 0.1, "min_lr": 1e-5, "warmup_epochs": 1.0, "drop_path": 0.2, "dropout": 0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
@pytest.mark.parametrize("model", [VIT, CNN], ids=["vit", "channels-last convnet"])
def test_a_run_of_the_whole_recipe_resumes_exactly_after_any_epoch(distilled, tmp_path, model, optimizer):
    task = trained_by(replace(distilled, model=model), optimizer=optimizer, **WHOLE)

    def anew():
        return start_distillation(task, DISTILLED, **SEEDS)

    whole, reports = anew(), []
    for epoch in range(1, 7):
        reports.append(whole.run(1))
        (tmp_path / str(epoch)).mkdir()
        whole.save(tmp_path / str(epoch))
    for epoch in range(1, 6):
        resumed = anew()
        resumed.run((epoch + 1) % 4)  # what had begun differently
        resumed.load(tmp_path / str(epoch))
        again = [resumed.run(1) for _ in range(6 - epoch)]
        assert same(state(whole.model), state(resumed.model)) and same(state(whole.result), state(resumed.result))
        for name in ("train_loss", "soft_loss", "validation_loss", "lr"):
            assert [report[name] for report in again] == [report[name] for report in reports[epoch:]]
    assert {path.suffix for path in (tmp_path / "1").iterdir()} == {".safetensors", ".json"}


def test_alpha_zero_is_the_baseline_bit_for_bit_with_the_whole_recipe(distilled):
    task = trained_by(distilled, **WHOLE)
    nothing = start_distillation(task, DISTILLED | {"alpha": 0.0}, **SEEDS)
    baseline = start(replace(task, teacher=None), {"lr": 3e-3}, **SEEDS)
    assert nothing.run(6)["validation_loss"] == baseline.run(6)["validation_loss"]
    assert same(state(nothing.model), state(baseline.model)) and same(state(nothing.result), state(baseline.result))


def test_a_trials_parameters_replace_the_recipes_settings(task):
    parameters = {"lr": 1e-3, "ema": 0.5, "freeze": "all", "accumulate": 5, "drop_path": 0.4, "layer_decay": 0.5}
    run = start(trained_by(task, ema=0.99, drop_path=0.1), parameters, **SEEDS)
    assert run.result is not run.model and run.ema.decay == 0.5 and run.frozen and run.steps_per_epoch == 1
    assert run.model.net.blocks[-1].drop_path1.drop_prob == pytest.approx(0.4)


# -- models that cannot follow ----------------------------------------------------------------------------------------

FUNCTIONS = """
from torch import nn
class Net(nn.Sequential):
    def get_classifier(self):
        return self[-1]
def layers(num_classes, in_chans):
    body = nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return *body, nn.Linear(4, num_classes)
def plain(num_classes, in_chans):
    return nn.Sequential(*layers(num_classes, in_chans))
def with_head(num_classes, in_chans):
    return Net(*layers(num_classes, in_chans))
def other_weights(num_classes, in_chans, drop_rate=0.0):
    return nn.Sequential(*([nn.Conv2d(in_chans, in_chans, 1)] if drop_rate else []), *layers(num_classes, in_chans))
"""
SHAPE = {"classes": 5, "channels": 3, "image_size": 32}
CANNOT = [
    ("own:plain", "freeze", "does not tell which layer is its head, which train.freeze needs to know; give the model a "
                            "method get_classifier"),
    ("own:plain", "head_lr", "which train.head_lr needs to know"),
    ("own:with_head", "layer_decay", "does not tell the order of its layers"),
    ("own:plain", "dropout", "takes no drop_rate, which train.dropout sets; remove train.dropout"),
    ("own:other_weights", "dropout", "has other weights with drop_rate than without"),
    ("vgg11", "drop_path", "'vgg11' takes no drop_path_rate, which train.drop_path sets; remove train.drop_path"),
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    import sys

    (tmp_path / "own.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)


@pytest.mark.parametrize(("model", "setting", "said"), CANNOT)
def test_a_model_that_cannot_follow_is_told_of_in_one_line(own, model, setting, said):
    with pytest.raises(ValueError) as caught:
        models.check_recipe(ModelSettings(model=model), {setting: f"train.{setting}"}, **SHAPE)
    message = str(caught.value)
    assert message.startswith("model = ") and said in message and "\n" not in message


def test_a_drop_rate_is_set_in_one_place():
    settings = ModelSettings(model="resnet18", args={"drop_rate": 0.1})
    with pytest.raises(ValueError, match=r"^args holds drop_rate, which search\.dropout sets too; remove one of"):
        models.check_recipe(settings, {"dropout": "search.dropout"}, **SHAPE)


def test_a_functions_model_is_frozen_but_for_what_it_calls_its_classifier(own, task):
    run = begin(replace(task, model=ModelSettings(model="own:with_head")), freeze=1, head_lr=5.0)
    head, body = parts_of(run)
    run.run(1)
    assert set(head) == {"4.weight", "4.bias"}
    assert same(body, parts_of(run)[1]) and not same(head, parts_of(run)[0])


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "convnext_atto", "levit_384_s8", "regnetx_002",
                                  "mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "efficientnet_lite0"])
def test_the_head_of_a_timm_model_is_what_timm_replaces_for_other_classes(name):
    with torch.device("meta"):
        few, many = (timm.create_model(name, num_classes=classes) for classes in (3, 7))
    shapes = {key: value.shape for key, value in few.named_parameters()}
    replaced = {key for key, value in many.named_parameters() if value.shape != shapes[key]}
    assert replaced <= head_names(few) and len(head_names(few)) < len(shapes) / 2


def test_a_classifier_is_unchanged_by_the_check(task):
    classifier = task.build_model(VIT)
    assert isinstance(classifier, Classifier)
    models.check_recipe(VIT, {"freeze": "train.freeze", "layer_decay": "train.layer_decay", "dropout": "train.dropout",
                              "drop_path": "train.drop_path", "head_lr": "train.head_lr"},
                        classes=4, channels=1, image_size=8)

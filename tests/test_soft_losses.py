"""The soft losses against formulas written out in NumPy, their gradients against finite differences, and what their
papers claim of them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_losses import cross_entropy, divergence, softmax, tensors

from kdstudy.trainables.losses import LOSSES, PARAMETERS, check_name, check_own, find, parameters_of
from kdstudy.trainables.losses.dkd import parts
from kdstudy.trainables.losses.soft import Labels
from kdstudy.trainables.losses.total import distillation_loss

RNG = np.random.default_rng(3)
STUDENT, TEACHER = RNG.normal(0, 2, (8, 6)), RNG.normal(0, 3, (8, 6))
LABELS, PARTNERS = RNG.integers(0, 6, 8), RNG.integers(0, 6, 8)
WEIGHT = RNG.uniform(0, 0.5, 8).astype(np.float32)
VALUES = {"temperature": 2.5, "dkd_beta": 3.0, "dist_gamma": 0.7}


# ---------------------------------------------------------------------------------------------------------------------
# In NumPy, in double precision, as the papers write them


def hinton(student, teacher, labels, temperature):
    return temperature**2 * divergence(student, teacher, temperature).mean()


def hard(student, teacher, labels):
    return cross_entropy(student, teacher.argmax(1)).mean()


def mse(student, teacher, labels):
    return ((student - teacher) ** 2).mean()


def logit_std(student, teacher, labels, temperature):
    student, teacher = ((z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True) for z in (student, teacher))
    return hinton(student, teacher, labels, temperature)


def tckd_and_nckd(student, teacher, labels, temperature):
    found = []
    for z, v, label in zip(student, teacher, labels, strict=True):
        q, p = softmax(z[None], temperature)[0], softmax(v[None], temperature)[0]
        rest_q, rest_p = np.delete(q, label), np.delete(p, label)
        two_q, two_p = np.array([q[label], rest_q.sum()]), np.array([p[label], rest_p.sum()])
        rest_q, rest_p = rest_q / rest_q.sum(), rest_p / rest_p.sum()
        found.append([(two_p * np.log(two_p / two_q)).sum(), (rest_p * np.log(rest_p / rest_q)).sum()])
    return np.array(found).T


def dkd(student, teacher, labels, temperature, dkd_beta):
    tckd, nckd = tckd_and_nckd(student, teacher, labels, temperature)
    return temperature**2 * (tckd + dkd_beta * nckd).mean()


def dist(student, teacher, labels, temperature, dist_gamma):
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    inter = np.mean([1 - np.corrcoef(one, other)[0, 1] for one, other in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(one, other)[0, 1] for one, other in zip(q.T, p.T, strict=True)])
    return temperature**2 * (inter + dist_gamma * intra)


def ttm(student, teacher, labels, temperature):
    p, q = softmax(teacher, temperature), softmax(student)
    return temperature * (p * np.log(p / q)).sum(1).mean()


# Those of the last line are given something else than the student's logits; what, is in test_features.py.
FORMULAS = {"hinton": hinton, "hard": hard, "mse": mse, "logit-std": logit_std, "dkd": dkd, "dist": dist, "ttm": ttm,
            "features": mse, "token-hard": hard, "token-soft": hinton}


def expected(name, student, teacher, labels=LABELS, **others):
    own = {one: value for one, value in (VALUES | others).items() if one in parameters_of(name)}
    return FORMULAS[name](student, teacher, labels, **own)


def found(name, student, teacher, labels=LABELS, **others):
    student, teacher, labels = tensors(student, teacher, labels)
    return LOSSES[name](student, teacher, Labels(labels), VALUES | others)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_papers_formula(name, temperature):
    value = found(name, STUDENT, TEACHER, temperature=temperature)
    assert value.dtype == torch.float32 and value.shape == ()
    assert value.item() == pytest.approx(expected(name, STUDENT, TEACHER, temperature=temperature), rel=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_its_gradient_is_that_of_finite_differences(name):
    student = torch.tensor(STUDENT, requires_grad=True)
    LOSSES[name](student, torch.tensor(TEACHER), Labels(torch.tensor(LABELS)), VALUES).backward()
    step, differences = 1e-5, np.zeros_like(STUDENT)
    for place in np.ndindex(STUDENT.shape):
        moved = np.zeros_like(STUDENT)
        moved[place] = step
        differences[place] = (expected(name, STUDENT + moved, TEACHER) - expected(name, STUDENT - moved, TEACHER)) / (
            2 * step)
    np.testing.assert_allclose(student.grad.numpy(), differences, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"hard", "token-hard", "ttm"}))
def test_a_student_like_its_teacher_has_no_loss_and_no_gradient(name):
    student = torch.tensor(TEACHER, requires_grad=True)
    value = LOSSES[name](student, torch.tensor(TEACHER), Labels(torch.tensor(LABELS)), VALUES)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5) and student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_added_to_an_images_logits_changes_no_loss_but_a_squared_difference(name):
    shifted = STUDENT + RNG.normal(0, 3, (8, 1))
    same = found(name, shifted, TEACHER).item() == pytest.approx(found(name, STUDENT, TEACHER).item(), rel=1e-4)
    assert same == (name not in ("mse", "features"))


@pytest.mark.parametrize("name", LOSSES)
def test_at_weight_0_the_partner_changes_no_bit(name):
    student, teacher, labels, partners = tensors(STUDENT, TEACHER, LABELS, PARTNERS)
    mixed = LOSSES[name](student, teacher, Labels(labels, partners, torch.zeros(8)), VALUES)
    assert torch.equal(mixed, LOSSES[name](student, teacher, Labels(labels), VALUES))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("student", "teacher"), [
    (np.zeros((4, 6)), TEACHER[:4]), (STUDENT[:4], np.zeros((4, 6))), (STUDENT[:1], TEACHER[:1]),
    (300 * STUDENT[:4], 300 * TEACHER[:4])], ids=["flat student", "flat teacher", "one image", "large logits"])
def test_extreme_logits_give_finite_losses_and_gradients(name, student, teacher):
    own, labels = torch.tensor(student, requires_grad=True), torch.tensor(LABELS[: len(student)])
    value = LOSSES[name](own, torch.tensor(teacher).half(), Labels(labels), VALUES)
    value.backward()
    assert value.isfinite() and own.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# What the papers say of them


def test_hintons_loss_tends_to_half_the_squared_difference_of_centred_logits():
    centred = [logits - logits.mean(1, keepdims=True) for logits in (STUDENT, TEACHER)]
    assert expected("hinton", *centred, temperature=1e4) == pytest.approx(found("mse", *centred).item() / 2, rel=1e-3)


def test_hard_labels_are_the_limit_of_a_low_temperature_of_the_teachers():
    """T * KL(teacher_T || student) / T: with T to 0 the teacher's distribution is its decision, without entropy."""
    assert found("ttm", STUDENT, TEACHER, temperature=0.01).item() / 0.01 == pytest.approx(
        found("hard", STUDENT, TEACHER).item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hintons_loss_is_tckd_and_nckd_with_the_weight_of_the_teachers_doubt(temperature):
    student, teacher, labels = tensors(STUDENT / temperature, TEACHER / temperature, LABELS)
    tckd, nckd = parts(student, teacher, labels)
    doubt = 1 - softmax(TEACHER, temperature)[np.arange(8), LABELS]
    whole = temperature**2 * (tckd.numpy() + doubt * nckd.numpy()).mean()
    assert whole == pytest.approx(expected("hinton", STUDENT, TEACHER, temperature=temperature), rel=1e-5)


def test_dkd_keeps_the_other_classes_where_the_teacher_is_sure():
    """A margin of 60 is a doubt of 1e-26, which fp32 rounds to none: Hinton's loss no longer sees the other classes."""
    teacher = TEACHER.copy()
    teacher[np.arange(8), LABELS] = teacher.max() + 60
    assert found("dkd", STUDENT, teacher, temperature=1.0).item() == pytest.approx(
        expected("dkd", STUDENT, teacher, temperature=1.0), rel=1e-4)


def test_dkd_mixes_the_losses_of_both_labels_as_the_labels_are_mixed():
    student, teacher, labels, partners, weight = tensors(STUDENT, TEACHER, LABELS, PARTNERS, WEIGHT)
    mixed = LOSSES["dkd"](student, teacher, Labels(labels, partners, weight), VALUES).item()
    each = [expected("dkd", STUDENT[i:i + 1], TEACHER[i:i + 1], [label]) for label_of in (LABELS, PARTNERS)
            for i, label in enumerate(label_of)]
    assert mixed == pytest.approx(((1 - WEIGHT) * each[:8] + WEIGHT * each[8:]).mean(), rel=1e-5)


def test_logit_std_is_blind_to_the_size_of_the_logits():
    scaled = STUDENT * RNG.uniform(0.1, 9, (8, 1))
    assert found("logit-std", scaled, 5 * TEACHER).item() == pytest.approx(
        found("logit-std", STUDENT, TEACHER).item(), rel=1e-4)


def test_dist_is_blind_to_scale_and_shift_of_the_probabilities():
    """Of each image for the one part, of each class for the other; neither is a softmax of anything any more."""
    from kdstudy.trainables.losses.dist import correlation

    student, teacher = tensors(softmax(STUDENT), softmax(TEACHER))
    for axis, shape in ((1, (8, 1)), (0, (1, 6))):
        scale, shift = torch.tensor(RNG.uniform(0.2, 3, shape)), torch.tensor(RNG.normal(0, 1, shape))
        torch.testing.assert_close(correlation(scale * student + shift, teacher, axis),
                                   correlation(student, teacher, axis))


def test_ttm_is_hintons_loss_less_a_reward_for_doubt():
    """Zheng and Yang's equation 15, times T: the Rényi entropy of order 1/T, and what does not depend on the student.
    """
    temperature = 3.0
    q, p = softmax(STUDENT), softmax(TEACHER, temperature)
    order = 1 / temperature
    renyi = np.log((q**order).sum(1)) / (1 - order)
    entropy = -(p * np.log(p)).sum(1)
    right = expected("hinton", STUDENT, TEACHER, temperature=temperature) + temperature * (temperature - 1) * (
        entropy - renyi).mean()
    assert found("ttm", STUDENT, TEACHER, temperature=temperature).item() == pytest.approx(right, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# In the whole loss


def test_of_images_without_labels_the_teachers_decision_takes_the_labels_place():
    student, teacher, labels, partners, weight = tensors(STUDENT, TEACHER, LABELS[:5], PARTNERS[:5], WEIGHT[:5])
    decided = np.concatenate([LABELS[:5], TEACHER[5:].argmax(1)])
    plain = distillation_loss(student[:5], labels, teacher, alpha=1.0, loss=LOSSES["dkd"], parameters=VALUES,
                              unlabelled_logits=student[5:])
    assert plain.soft.item() == pytest.approx(expected("dkd", STUDENT, TEACHER, decided), rel=1e-5)
    mixed = distillation_loss(student[:5], labels, teacher, alpha=1.0, loss=LOSSES["dkd"], parameters=VALUES,
                              partner_labels=partners, partner_weight=weight, unlabelled_logits=student[5:])
    with_labels = LOSSES["dkd"](student[:5], teacher[:5], Labels(labels, partners, weight), VALUES).item()
    without = expected("dkd", STUDENT[5:], TEACHER[5:], TEACHER[5:].argmax(1))
    assert mixed.soft.item() == pytest.approx((5 * with_labels + 3 * without) / 8, rel=1e-5)


def test_settings_can_read_which_parameters_a_loss_has_without_torch():
    code = "import sys; from kdstudy.trainables.losses import LOSSES, parameters_of\nfor name in LOSSES: " \
           "parameters_of(name)\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_every_parameters_default_is_within_its_bounds():
    for parameter in PARAMETERS.values():
        assert parameter.low <= parameter.default <= parameter.high


# ---------------------------------------------------------------------------------------------------------------------
# A loss of the user's own

OWN = '''
import torch
import torch.nn.functional as F

def absolute(student_logits, teacher_logits, labels, *, temperature):
    return (student_logits - teacher_logits).abs().mean() / temperature

def of_labels(student_logits, teacher_logits, labels, *, temperature):
    return F.cross_entropy(student_logits, labels)

def per_image(student_logits, teacher_logits, labels, *, temperature):
    return (student_logits - teacher_logits).abs().mean(1)

def number(student_logits, teacher_logits, labels, *, temperature):
    return student_logits.sum().item()

def detached(student_logits, teacher_logits, labels, *, temperature):
    return student_logits.detach().sum()

def infinite(student_logits, teacher_logits, labels, *, temperature):
    return student_logits.sum() / 0

def broken(student_logits, teacher_logits, labels, *, temperature):
    return student_logits @ teacher_logits

def without_temperature(student_logits, teacher_logits, labels):
    return student_logits.sum()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_losses_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_losses_of_a_test:{}".format


def test_an_own_loss_gets_logits_labels_and_temperature(own):
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    assert parameters_of(own("absolute")) == ("temperature",)
    value = find(own("absolute"))(student.half(), teacher, Labels(labels), VALUES)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(np.abs(STUDENT - TEACHER).mean() / 2.5, rel=1e-3)
    check_own(own("absolute"), classes=6)


def test_the_readmes_example_is_a_loss_of_at_most_ten_lines(tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "trainables" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(# my_losses.py.*?)```", readme, re.DOTALL)
    (tmp_path / "my_losses_of_the_readme.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    check_own("my_losses_of_the_readme:cosine", classes=6)
    assert len(code.splitlines()) <= 10


def test_an_own_loss_gets_the_label_of_the_larger_weight(own):
    student, teacher, labels, partners = tensors(STUDENT, TEACHER, LABELS, PARTNERS)
    weight = torch.tensor([0.0, 0.2, 0.5, 0.51, 0.9, 1.0, 0.3, 0.7])
    value = find(own("of_labels"))(student, teacher, Labels(labels, partners, weight), VALUES).item()
    larger = np.where(weight.numpy() > 0.5, PARTNERS, LABELS)
    assert value == pytest.approx(cross_entropy(STUDENT, larger).mean(), rel=1e-5)


@pytest.mark.parametrize(("function", "said"), [
    ("per_image", r"returned a tensor \(8,\) of torch.float32; it must return the mean over the batch"),
    ("number", "returned -?[0-9.]+; it must return"), ("detached", "can be differentiated"),
    ("infinite", "is not finite"), ("broken", "failed on a batch of random logits"),
    ("without_temperature", "unexpected keyword argument 'temperature'"), ("missing", "cannot be imported")])
def test_what_is_no_loss_is_refused_in_one_line(own, function, said):
    with pytest.raises(ValueError, match=said) as refused:
        check_own(own(function), classes=6)
    assert str(refused.value).startswith(f"loss = '{own(function)}'") and "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "said"), [
    ("hintn", "must be one of hinton, hard, .*did you mean 'hinton'"), ("xyz", "package.module:function$")])
def test_an_unknown_name_is_refused_with_the_known_ones(name, said):
    with pytest.raises(ValueError, match=said):
        check_name(name)

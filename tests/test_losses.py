"""The whole loss, and Hinton's soft loss, against closed forms written out in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdstudy.trainables.losses import LOSSES, PARAMETERS
from kdstudy.trainables.losses.hinton import hinton
from kdstudy.trainables.losses.total import distillation_loss, hard_loss

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(0, 2, (6, 5)), RNG.normal(0, 3, (6, 5))
LABELS, PARTNERS = RNG.integers(0, 5, 6), RNG.integers(0, 5, 6)
WEIGHT = RNG.uniform(0, 0.5, 6)


def softmax(logits, temperature=1.0):
    powers = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def divergence(student, teacher, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return (p * (np.log(p) - np.log(q))).sum(1)


def tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


def soft_loss(student, teacher, temperature):
    return hinton(student.float(), teacher.float(), temperature)


def with_kl_div(student, teacher, temperature):
    student = F.log_softmax(student.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def whole(student, labels, teacher, *, temperature, alpha, **others):
    return distillation_loss(student, labels, teacher, alpha=alpha, loss=LOSSES["hinton"],
                             parameters={"temperature": temperature}, **others)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 16.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_stated_mixture(temperature, alpha):
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    loss = whole(student, labels, teacher, temperature=temperature, alpha=alpha)
    expected = (1 - alpha) * cross_entropy(STUDENT, LABELS).mean() + alpha * temperature**2 * divergence(
        STUDENT, TEACHER, temperature).mean()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_alpha_is_the_weight_of_the_soft_term():
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    pure = whole(student, labels, teacher, temperature=3.0, alpha=1.0)
    assert pure.total.item() == pure.soft.item()
    none = whole(student, labels, teacher, temperature=3.0, alpha=0.0)
    assert none.total.item() == none.hard.item() == hard_loss(student, labels).item()
    assert none.soft is None


def test_a_perfect_student_has_no_soft_loss():
    assert soft_loss(*tensors(TEACHER, TEACHER), 4.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_t_times_the_difference_of_the_softened_probabilities(temperature):
    student, teacher = tensors(STUDENT, TEACHER)
    student.requires_grad_()
    soft_loss(student, teacher, temperature).backward()
    expected = temperature * (softmax(STUDENT, temperature) - softmax(TEACHER, temperature)) / len(STUDENT)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_t_squared_keeps_the_gradient_of_small_logits_independent_of_t():
    """Hinton et al.: for logits small against T the gradient tends to (z - v) / C, whatever T is."""
    centred = [array - array.mean(1, keepdims=True) for array in (STUDENT, TEACHER)]
    gradients = []
    for temperature in (200.0, 400.0):
        student, teacher = tensors(*centred)
        student.requires_grad_()
        soft_loss(student.double(), teacher.double(), temperature).backward()
        gradients.append(student.grad.numpy())
    np.testing.assert_allclose(gradients[0], (centred[0] - centred[1]) / 5 / 6, rtol=0.1, atol=2e-3)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0.1, atol=1e-3)


def test_mixup_mixes_the_two_labels_cross_entropies():
    student, labels, partners, weight = tensors(STUDENT, LABELS, PARTNERS, WEIGHT)
    loss = hard_loss(student, labels, partners, weight.float())
    expected = (1 - WEIGHT) * cross_entropy(STUDENT, LABELS) + WEIGHT * cross_entropy(STUDENT, PARTNERS)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-5)


def test_half_precision_logits_lose_nothing_in_the_softmax():
    """fp16 logits of size 300: in half precision the log-softmax would be off by more than the result's digits."""
    student, teacher = torch.tensor(STUDENT * 60).half(), torch.tensor(TEACHER * 60).half()
    loss = soft_loss(student, teacher, 4.0)
    expected = 16 * divergence(student.double().numpy(), teacher.double().numpy(), 4.0).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_alpha_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="needs teacher logits"):
        whole(*tensors(STUDENT, LABELS), None, temperature=4.0, alpha=0.5)


def test_hintons_loss_is_what_it_was_bit_for_bit():
    """As the loss was before there were others: with torch's own kl_div."""
    random = torch.Generator().manual_seed(0)
    for temperature in (0.7, 1.0, 4.0, 11.3):
        student, teacher = (torch.randn(64, 100, generator=random) * 5 for _ in range(2))
        teacher, gradients, values = teacher.half(), [], []
        for loss in (with_kl_div, lambda *given: LOSSES["hinton"](*given[:2], None, {"temperature": given[2]})):
            own = student.clone().requires_grad_()
            value = loss(own, teacher, temperature)
            values.append(value.detach())
            gradients.append(*torch.autograd.grad(value, own))
        assert torch.equal(*values) and torch.equal(*gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_alpha_0_is_the_hard_loss_bit_for_bit_and_alpha_1_the_soft_one_whatever_it_is(name):
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    values = {one.name: one.default for one in PARAMETERS.values()}
    none, half, pure = (distillation_loss(student, labels, teacher, alpha=alpha, loss=LOSSES[name], parameters=values)
                        for alpha in (0.0, 0.25, 1.0))
    assert torch.equal(none.total, hard_loss(student, labels)) and none.soft is None
    assert torch.equal(pure.total, pure.soft)
    assert half.total.item() == pytest.approx(0.75 * half.hard.item() + 0.25 * pure.soft.item(), rel=1e-6)

"""The loss against closed forms written out in NumPy."""

import numpy as np
import pytest
import torch

from kdstudy.trainables.losses import distillation_loss, hard_loss, soft_loss

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


@pytest.mark.parametrize("temperature", [1.0, 2.5, 16.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_stated_mixture(temperature, alpha):
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    loss = distillation_loss(student, labels, teacher, temperature=temperature, alpha=alpha)
    expected = (1 - alpha) * cross_entropy(STUDENT, LABELS).mean() + alpha * temperature**2 * divergence(
        STUDENT, TEACHER, temperature).mean()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_alpha_is_the_weight_of_the_soft_term():
    student, teacher, labels = tensors(STUDENT, TEACHER, LABELS)
    pure = distillation_loss(student, labels, teacher, temperature=3.0, alpha=1.0)
    assert pure.total.item() == pure.soft.item()
    none = distillation_loss(student, labels, teacher, temperature=3.0, alpha=0.0)
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
        distillation_loss(*tensors(STUDENT, LABELS), None, temperature=4.0, alpha=0.5)

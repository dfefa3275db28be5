"""Distillation through a token: the student has a second head, and that alone learns from the teacher.

    token-hard: CE(distillation head, argmax of the teacher)
    token-soft: T^2 * KL(teacher_T || distillation head_T)

The head of the class token alone learns from the labels. At test time, and in the baseline as in all other losses, the
student's logits are the mean of both heads'. So at alpha = 0 the loss is the baseline's, which trains that mean, and
not the limit of a small alpha, which would leave the distillation head untrained.

Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT), 2021,
arXiv:2012.12877, section 4. There alpha is 1/2 for hard labels, which are better than soft ones with T = 3 and
alpha = 0.1. As in timm's TokenDistillationTask the divergence is the mean over images; DeiT's code also divides it by
the number of classes.
"""

from __future__ import annotations

from kdstudy.trainables.losses.hard import hard
from kdstudy.trainables.losses.hinton import hinton
from kdstudy.trainables.losses.soft import TOKEN, SoftLoss

HARD = SoftLoss("token-hard", hard, parameters=(), reads=TOKEN)
SOFT = SoftLoss("token-soft", hinton, reads=TOKEN)

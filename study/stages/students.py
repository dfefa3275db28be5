"""What the stages that train students share: their inputs and their task, in either arm.

An arm is one of the two ways to train the student: `baseline`, on labels alone, or `distill`, with the teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdstudy.config.settings import StudyConfig
from kdstudy.stages.base import BACKWARD
from kdstudy.stages.context import Context
from kdstudy.store.fingerprints import changed, model_inputs

if TYPE_CHECKING:  # it imports torch, which a finished study can do without
    from kdstudy.trainables.task import Task


def view_inputs(config: StudyConfig, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """The augmentation, for a fingerprint."""
    return changed(config.views, exclude=("cache_gib", *exclude))


def shared_inputs(context: Context) -> list[Any]:
    """What decides how a student is trained, whatever the arm, for a fingerprint."""
    config, images = context.config, context.image_hashes
    return [config.seed, model_inputs("student", config.student), changed(config.train), view_inputs(config),
            images["student_train"], images["validation"], context.image_size]


def soft_inputs(context: Context) -> list[Any]:
    """What decides the soft loss, for a fingerprint. Raises MissingTeacherError where there is no teacher yet."""
    config, inputs = context.config, [context.stage("teacher").weights_hash]
    if config.teacher.precision != "auto":
        inputs.append(config.teacher.precision)
    if config.data.unlabelled:
        inputs += [context.image_hashes["unlabelled"], config.data.unlabelled]
    return inputs


def plain_task(context: Context) -> Task:
    """What all runs of the student share, whatever the stage."""
    from kdstudy.trainables.task import Task  # imports torch

    config, splits = context.config, context.splits
    return Task(train=splits.student_train, validation=splits.validation, classes=len(splits.class_names),
                image_size=context.image_size, model=config.student, training=config.train, views=config.views,
                report_every=config.report_every, checkpoint_every=config.checkpoint_every,
                threads=config.resources.cpus_per_trial, unlabelled=splits.unlabelled,
                unlabelled_ratio=config.data.unlabelled)


def arm_task(context: Context, arm: str, view_seeds: list[int]) -> Task:
    """What the runs of an arm share. view_seeds: those for which the teacher's logits are needed."""
    task = replace(plain_task(context), weights=context.initial_weights("student"))
    if arm == "baseline":
        return replace(task, unlabelled=None)
    return replace(task, teacher=context.stage("teacher_logits").teacher(view_seeds))


def passes(context: Context, arm: str) -> float:
    """The cost of a labelled image in forward passes of the student: images without labels come on top of it wherever
    there is a soft loss."""
    return BACKWARD * (1 + context.config.data.unlabelled) if arm == "distill" else BACKWARD


def paced_by(context: Context, arm: str) -> tuple[tuple[str, float], ...]:
    """The searches whose recorded pace stands in for a stage of an arm, each with a factor."""
    if arm == "baseline":
        return (("baseline", 1.0),)
    return (("distill", 1.0), ("baseline", 1 + context.config.data.unlabelled))

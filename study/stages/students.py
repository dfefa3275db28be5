"""Inputs and tasks shared by the stages that train students.

An arm is one of the two ways to train the student: `baseline`, on labels alone, or `distill`, with the teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdstudy.analysis.stage_names import stage_for
from kdstudy.config.settings import StudyConfig, own_losses
from kdstudy.config.teachers import MAIN
from kdstudy.errors import UserError
from kdstudy.stages.base import BACKWARD, COPIES_IN_CHECKPOINT, Workload
from kdstudy.stages.context import Context
from kdstudy.store.fingerprints import changed, function_hash, model_inputs
from kdstudy.trainables.settings import HOW_LOGITS_ARE_KEPT, TrainSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


TEACHER, LOGITS = "teacher", "teacher_logits"  # the stages of the main teacher


def view_inputs(config: StudyConfig, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the augmentation settings for a fingerprint."""
    return changed(config.views.written_out, exclude=(*HOW_LOGITS_ARE_KEPT, *exclude))


def shared_inputs(context: Context) -> list[Any]:
    """Return the inputs of student training that both arms share, for a fingerprint."""
    config, images = context.config, context.image_hashes
    return [config.seed, model_inputs("student", config.student), changed(config.train),
            view_inputs(config, exclude=("erase_teacher",)), images["student_train"], images["validation"],
            context.image_size]


def soft_inputs(context: Context, teacher: str = TEACHER) -> list[Any]:
    """Return the inputs of the soft loss, for a fingerprint. teacher: the stage that trains it. Raises
    MissingTeacherError."""
    config, inputs = context.config, [context.stage(teacher).weights_hash]
    if others := _others(context) if teacher == TEACHER else {}:
        inputs.append({"teachers": {name: [stage.weights_hash, stage.settings.precision]
                                    for name, stage in others.items()}})
    if config.teacher.precision != "auto":
        inputs.append(config.teacher.precision)
    if config.data.unlabelled:
        inputs += [context.image_hashes["unlabelled"], config.data.unlabelled]
    # Of a function, the name says nothing about the code.
    if own := {loss: function_hash(loss, setting) for setting, loss in own_losses(config).items()}:
        inputs.append({"losses": own})
    if config.views.erase and not config.views.erase_teacher:
        inputs.append("teacher sees images before erasing")
    return [*inputs, *truncation(context)]


def truncation(context: Context) -> list[str]:
    """What it adds to the inputs of stages with the teacher's logits that not all of these are kept."""
    keep = context.config.views.kept_logits(len(context.splits.class_names))
    return [] if keep is None else [f"the {keep} largest logits"]


def plain_task(context: Context) -> Task:
    """Return the part of the task that all student runs share."""
    from kdstudy.trainables.task import Task  # imports torch

    config, splits = context.config, context.splits
    return Task(train=splits.student_train, validation=splits.validation, classes=len(splits.class_names),
                image_size=context.image_size, model=context.model("student"), training=config.train,
                views=config.views,
                report_every=config.report_every, checkpoint_every=config.checkpoint_every,
                threads=config.resources.cpus_per_trial, unlabelled=splits.unlabelled,
                unlabelled_ratio=config.data.unlabelled, own_losses=tuple(own_losses(config).values()))


def arm_task(context: Context, learns_from: str | None, view_seeds: list[int]) -> Task:
    """Return the task that the runs of a stage share. learns_from: the stage with the teacher's logits; None for
    students that learn from labels alone. view_seeds: those whose logits are needed."""
    task = replace(plain_task(context), weights=context.initial_weights("student"))
    if learns_from is None:
        return replace(task, unlabelled=None)
    others = _others(context, learns_from) if learns_from == LOGITS else {}
    return replace(task, teacher=context.stage(learns_from).teacher(view_seeds),
                   other_teachers={name: stage.teacher(view_seeds) for name, stage in others.items()})


def logits_stages(config: StudyConfig) -> tuple[str, ...]:
    """The names of the stages with the logits of all teachers that trials of the distillation may have."""
    return tuple(stage_for(LOGITS, name) for name in config.teacher_choice)


def teacher_of(context: Context, parameters: dict[str, Any]) -> Any:
    """The stage of the teacher that a run with these parameters learns from. Raises UserError if the settings name no
    such teacher, as where the record is of other settings."""
    return context.stage(stage_for(TEACHER, _name_of(context, parameters)))


def logits_of(context: Context, parameters: dict[str, Any]) -> Any:
    """The stage of its logits. Raises UserError likewise."""
    return context.stage(stage_for(LOGITS, _name_of(context, parameters)))


def _name_of(context: Context, parameters: dict[str, Any]) -> str:
    name = parameters.get("teacher", MAIN)
    if name != MAIN and name not in context.config.teacher_choice:
        raise UserError(f"the study's record names the teacher {str(name)[:40]!r}, which search.teacher does not; "
                        "restore the settings that it was run with")
    return name


def _others(context: Context, stage: str = TEACHER) -> dict[str, Any]:
    """The stages of the other teachers that trials may have, by name. stage: which of them, by that of the main one."""
    return {name: context.stage(stage_for(stage, name)) for name in context.config.teacher_choice if name != MAIN}


def workload(context: Context, arm: str, runs: int) -> Workload:
    """Return the work of a stage that trains students of an arm; see `Workload`."""
    config = context.config
    return Workload(runs=runs, epochs=config.train.epochs, images=len(context.splits.student_train),
                    models=(context.model("student"),), passes=_passes(context, arm), paced_by=_paced_by(context, arm))


def copies_in_checkpoint(config: StudyConfig) -> int:
    """Return how many times a checkpoint of a student holds the student's weights, at most."""
    return COPIES_IN_CHECKPOINT + (max(config.extremes("ema", config.train.ema)) > 0)


def passes(training: TrainSettings) -> float:
    """Return the cost of one image in forward passes. While only the head learns, gradients end there."""
    if not training.freeze:
        return BACKWARD
    frozen = training.epochs if training.freeze == "all" else training.freeze
    return BACKWARD - (BACKWARD - 1) * frozen / training.epochs


def _passes(context: Context, arm: str) -> float:
    """Return the cost of one labelled image in forward passes of the student. With a soft loss, images without labels
    add to it."""
    each = passes(context.config.train)
    return each * (1 + context.config.data.unlabelled) if arm == "distill" else each


def _paced_by(context: Context, arm: str) -> dict[str, float]:
    """Return the searches whose recorded pace can replace that of a stage of an arm, each with a factor."""
    if arm == "baseline":
        return {"baseline": 1.0}
    return {"distill": 1.0, "baseline": 1 + context.config.data.unlabelled}

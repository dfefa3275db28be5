"""TODO docstring."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.tune.cluster import Share
from kdstudy.watch.display import show_bytes

if TYPE_CHECKING:
    from kdstudy.study import Study
from kdstudy.plan.nodes import _free, _place

# A checkpoint: the weights and the two moments that the usual optimizers keep of each.
COPIES_IN_CHECKPOINT = 3
BYTES_PER_WEIGHT = 4
OTHER_BYTES = 16 * 2**20  # records, tables, the page: 11 MiB with 500 trials


@dataclass(frozen=True)
class Room:
    """What a study is still going to write, estimated.

    parts: bytes, by what they are for and the setting that makes them fewer. checkpoint: bytes of one of the largest
    model that is still trained.
    """

    parts: dict[str, int]
    checkpoint: int


def room_needed(study: Study, given: Share) -> Room:
    """An estimate from the sizes of the models and the numbers of runs; what is there already does not count."""
    from kdstudy.plan.plan import make_plan, parameter_count, teacher_models
    from kdstudy.stages.work import CONFIRMATIONS
    from kdstudy.study import PHASES

    runs = {plan.name: plan.runs for plan in make_plan(study) if not plan.done}
    student = BYTES_PER_WEIGHT * parameter_count(study.config.student, study)
    teacher = BYTES_PER_WEIGHT * sum(parameter_count(settings, study) for settings in teacher_models(study))
    checkpoints = {name: COPIES_IN_CHECKPOINT * (teacher if name == "teacher" else student)
                   for name, count in runs.items() if count and name != "teacher_logits"}
    logits = study.logits_bytes if study.config.teacher.logits or study.logits_fit else 0
    if pieces := runs.get("teacher_logits"):
        checkpoints["teacher_logits"] = logits // pieces
    at_a_time = max(_in_flight([name for name in phase if name in checkpoints], runs, checkpoints, given.concurrent)
                    for phase in PHASES)
    predictions = len(study.splits.test) * (2 * len(study.splits.class_names) + 16)
    kept = {"teacher": (runs.get("teacher", 0) + 1) * teacher,
            # In pieces first, which go as they are put together, a view seed at a time.
            "teacher_logits": logits + logits // len(study.view_seeds),
            **{name: runs.get(name, 0) * (student + predictions) for name in CONFIRMATIONS}}
    kept = {name: max(0, count - _written(study, name)) for name, count in kept.items() if name in runs}
    return Room({"the checkpoints of trials that run (fewer with resources.concurrent)": at_a_time,
                 "trained teachers (one for each teacher.lr)": kept.get("teacher", 0),
                 "the teacher's logits (none with a smaller views.cache_gib)": kept.get("teacher_logits", 0),
                 "confirmed runs (fewer with fewer confirm.seeds)": sum(kept.get(name, 0) for name in CONFIRMATIONS),
                 "records and the report": OTHER_BYTES if runs else 0}, max(checkpoints.values(), default=0))


def _in_flight(names: list[str], runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    """Bytes of the checkpoints of a phase's trials that run at a time, of each the last and the next."""
    total = 0
    for name in names:
        running = min(concurrent, runs[name])
        total, concurrent = total + 2 * running * checkpoints[name], concurrent - running
    return total


def _written(study: Study, name: str) -> int:
    """Bytes of a stage that are on the disk already."""
    try:
        folder = study.stage(name).path
    except MissingTeacherError:
        return 0
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # where trials run, drafts come and go
            size += file.stat().st_size if file.is_file() else 0
    return size


def _check_place_room(study: Study, room: Room) -> None:
    if study.storage.uri is not None:
        return
    folder, needed = _place(study.storage), sum(room.parts.values())
    if (free := _free(folder)) < needed:
        largest = max(room.parts, key=room.parts.get)
        raise UserError(f"{study.storage} has {show_bytes(free)} free, but the study still writes about "
                        f"{show_bytes(needed)}, mostly {largest}; make room, or choose another place with --dir")


def _check_temporary_room(where: str, trials: int, folder: str, free: int, room: Room) -> None:
    if free < (needed := trials * room.checkpoint):
        raise UserError(f"{folder} of {where} has {show_bytes(free)} free, but the checkpoints of {trials} trials pass "
                        f"through it, about {show_bytes(needed)}; make room there, or set TMPDIR to another place "
                        "before Ray is started")

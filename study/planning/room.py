"""Whether there is room for what a study will write."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.planning.estimate import ModelSizes
from kdstudy.planning.nodes import free_bytes, probed_location
from kdstudy.stages.base import BYTES_PER_WEIGHT, Stage
from kdstudy.stages.order import may_overlap
from kdstudy.study import Study
from kdstudy.trainables.settings import ModelSettings
from kdstudy.tune.cluster import Share
from kdstudy.watch.display import show_bytes

OTHER_BYTES = 16 * 2**20  # records, tables, the page: 11 MiB with 500 trials
CHECKPOINTS = "the checkpoints of trials that run (fewer with resources.concurrent)"
OTHERS = "records and the report"


@dataclass(frozen=True)
class Room:
    """What a study will still write, estimated.

    parts: bytes, by what they are for and the setting that makes them fewer. checkpoint: bytes of one of the largest
    model that is still trained.
    """

    parts: dict[str, int]
    checkpoint: int


def room_needed(study: Study, given: Share) -> Room:
    """An estimate from the sizes of the models and the numbers of runs; what is there already does not count."""
    sizes = ModelSizes(study.context)

    def size(settings: ModelSettings) -> int:
        return BYTES_PER_WEIGHT * sizes.parameters(settings)

    runs = {name: stage.workload().runs for name, stage in study.stages.items() if not is_done(stage)}
    spaces = {name: study.stages[name].space(count, size) for name, count in runs.items()}
    checkpoints = {name: space.checkpoint for name, space in spaces.items() if runs[name]}
    kept: Counter[str] = Counter()
    for name, space in spaces.items():
        if space.heading:
            kept[space.heading] += max(0, space.kept - _written(study.stages[name]))
    return Room({CHECKPOINTS: _at_a_time(runs, checkpoints, given.concurrent), **kept,
                 OTHERS: OTHER_BYTES if runs else 0}, max(checkpoints.values(), default=0))


def is_done(stage: Stage) -> bool:
    try:
        return stage.is_current()
    except MissingTeacherError:
        return False


def _at_a_time(runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    """Bytes of the checkpoints of the trials that run at a time, at most: of each the last and the next."""
    return max((_of_stages([name for name in checkpoints if may_overlap(stage, name)], runs, checkpoints, concurrent)
                for stage in checkpoints), default=0)


def _of_stages(names: list[str], runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    total = 0
    for name in names:
        running = min(concurrent, runs[name])
        total, concurrent = total + 2 * running * checkpoints[name], concurrent - running
    return total


def _written(stage: Stage) -> int:
    """Bytes of a stage that are on the disk already."""
    try:
        folder = stage.folder.path
    except MissingTeacherError:
        return 0
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # where trials run, drafts come and go
            size += file.stat().st_size if file.is_file() else 0
    return size


def check_storage_room(study: Study, room: Room) -> None:
    """Raises UserError where the study's file system has too little room."""
    if study.storage.uri is not None:
        return
    folder, needed = probed_location(study.storage), sum(room.parts.values())
    if (free := free_bytes(folder)) < needed:
        largest = max(room.parts, key=room.parts.get)
        raise UserError(f"{study.storage} has {show_bytes(free)} free, but the study still writes about "
                        f"{show_bytes(needed)}, mostly {largest}; make room, or choose another location with --dir")


def check_temporary_room(where: str, trials: int, folder: str, free: int, room: Room) -> None:
    """Raises UserError where the temporary folder is too small for so many trials' checkpoints."""
    if free < (needed := trials * room.checkpoint):
        raise UserError(f"{folder} of {where} has {show_bytes(free)} free, but the checkpoints of {trials} trials pass "
                        f"through it, about {show_bytes(needed)}; make room there, or set TMPDIR to another folder "
                        "before Ray is started")

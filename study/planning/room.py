"""Check that there is enough disk space for a study."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

from kdstudy.errors import UserError
from kdstudy.planning.estimate import ModelSizes
from kdstudy.planning.nodes import free_bytes, probed_location
from kdstudy.stages.base import BYTES_PER_WEIGHT, Stage
from kdstudy.stages.order import may_overlap
from kdstudy.study import Study
from kdstudy.trainables.settings import ModelSettings
from kdstudy.tune.cluster import Share
from kdstudy.watch.display import show_bytes

OTHER_BYTES = 16 * 2**20  # records, tables and report: 11 MiB with 500 trials
CHECKPOINTS = "the checkpoints of trials that run (fewer with resources.concurrent)"
OTHERS = "records and the report"


@dataclass(frozen=True)
class Room:
    """An estimate of what a study will still write.

    parts: bytes by purpose; each purpose names the setting that reduces it. checkpoint: bytes of one checkpoint of the
    largest model still to be trained.
    """

    parts: dict[str, int]
    checkpoint: int


def room_needed(study: Study, given: Share) -> Room:
    """Estimate the space needed from the models' sizes and the numbers of runs, without what is already written."""
    sizes = ModelSizes.of(study.context)

    def size(settings: ModelSettings) -> int:
        return BYTES_PER_WEIGHT * sizes.parameters(settings)

    runs = {name: stage.workload().runs for name, stage in study.stages.items() if not stage.is_finished}
    spaces = {name: study.stages[name].space(count, size) for name, count in runs.items()}
    checkpoints = {name: space.checkpoint for name, space in spaces.items() if runs[name]}
    kept: Counter[str] = Counter()
    for name, space in spaces.items():
        if space.heading:
            kept[space.heading] += max(0, space.kept - _written(study.stages[name]))
    return Room({CHECKPOINTS: _at_a_time(runs, checkpoints, given.concurrent), **kept,
                 OTHERS: OTHER_BYTES if runs else 0}, max(checkpoints.values(), default=0))


def _at_a_time(runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    """Return the most bytes that the running trials' checkpoints take: two per trial, the current and the next."""
    return max((_of_stages([name for name in checkpoints if may_overlap(stage, name)], runs, checkpoints, concurrent)
                for stage in checkpoints), default=0)


def _of_stages(names: list[str], runs: dict[str, int], checkpoints: dict[str, int], concurrent: int) -> int:
    total = 0
    for name in names:
        running = min(concurrent, runs[name])
        total, concurrent = total + 2 * running * checkpoints[name], concurrent - running
    return total


def _written(stage: Stage) -> int:
    """Return how many bytes a stage has already written."""
    size, folder = 0, stage.known_folder
    for file in folder.path.rglob("*") if folder else ():
        with contextlib.suppress(FileNotFoundError):  # drafts appear and disappear while trials run
            size += file.stat().st_size if file.is_file() else 0
    return size


def check_storage_room(study: Study, room: Room) -> None:
    """Raises UserError if the study's file system has too little free space."""
    if study.storage.uri is not None:
        return
    folder, needed = probed_location(study.storage), sum(room.parts.values())
    if (free := free_bytes(folder)) < needed:
        largest = max(room.parts, key=room.parts.get)
        raise UserError(f"{study.storage} has {show_bytes(free)} free, but the study still writes about "
                        f"{show_bytes(needed)}, mostly {largest}; make room, or choose another location with --dir")


def check_temporary_room(where: str, trials: int, folder: str, free: int, room: Room) -> None:
    """Raises UserError if the temporary folder is too small for the checkpoints of `trials` concurrent trials."""
    if free < (needed := trials * room.checkpoint):
        raise UserError(f"{folder} of {where} has {show_bytes(free)} free, but the checkpoints of {trials} trials pass "
                        f"through it, about {show_bytes(needed)}; make room there, or set TMPDIR to another folder "
                        "before Ray starts")

"""Stages as they become possible: each is opened once what it needs is there, and closed once its trials have ended,
while others run. So no worker waits for the last trial of a stage that the next one does not need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kdstudy.config.settings import FINALISTS
from kdstudy.errors import StorageError, StudyFailedError
from kdstudy.trainables.files import LOGITS_FILES, RESULT_FILES
from kdstudy.trainables.object_store import put_task
from kdstudy.tune.cluster import remote_work
from kdstudy.tune.tuner import Job

if TYPE_CHECKING:
    from kdstudy.stages.inputs import Stage
    from kdstudy.study import Study

SEARCHED = ("baseline", "distill")
NEEDS = {"teacher_logits": ("teacher",), "distill": ("teacher_logits",),
         # What is chosen among the baseline's trials rests on those of the distillation too.
         **dict.fromkeys(FINALISTS, SEARCHED),
         "confirm_baseline": (*SEARCHED, *FINALISTS), "confirm": (*SEARCHED, *FINALISTS)}
# Whose trials come first: what others wait for, then what nobody does.
ORDER = ("teacher", "teacher_logits", *SEARCHED, *FINALISTS, "confirm_baseline", "confirm")


class Pipeline:
    """The stages of a study that train or evaluate models; what `tuner.run_trials` calls work.

    failures: why stages could not be closed or opened; what needs them is left out, the others go on.
    """

    def __init__(self, study: Study, names: list[str]):
        self._study, self._waiting = study, sorted(names, key=ORDER.index)
        self._wanted = set(names)
        self.jobs: list[Job] = []
        self.failures: list[StudyFailedError] = []
        self._done: set[str] = set()
        self._stages: dict[str, Stage] = {}
        self._meter, self._read_at_begin = Meter(), {}
        self._images: dict[int, object] = {}

    def advance(self) -> None:
        """Close the stages whose trials have ended, and open those that can begin."""
        for job in self.jobs:
            if job.open and job.book.complete:
                self._close(job)
        while ready := [name for name in self._waiting if self._is_ready(name)]:
            self._waiting.remove(ready[0])
            self._open(ready[0])

    def is_ended(self) -> bool:
        return not any(job.open for job in self.jobs) and not any(map(self._is_ready, self._waiting))

    def occupied(self, trials: int, slots: int) -> None:
        self._meter.set(trials, slots)

    def _is_ready(self, name: str) -> bool:
        return all(needed in self._done or needed not in self._wanted for needed in NEEDS.get(name, ()))

    def _open(self, name: str) -> None:
        study = self._study
        stage = study.prepared(name)
        if study.is_current(stage):
            self._done.add(name)
            study.show(stage, reused=True)
            return
        self._stages[name] = stage
        try:
            study.make_ready(stage)
            self._show_stages(also=name)
            if study.is_given(stage):
                with remote_work(name):
                    study.take_given(stage)
                self._ended(stage)
                return
            self._read_at_begin[name] = self._meter.read()
            self._add_job(stage)
        except StorageError:
            raise
        except StudyFailedError as error:
            self._note_failure(error)

    def _add_job(self, stage: Stage) -> None:
        study = self._study
        book = study.book(stage, lambda: study.display.trials({job.stage: job.book for job in self.jobs if job.open}))
        job = Job(stage.name, book, put_task(study.task(stage.name), self._images),
                  LOGITS_FILES if stage.name == "teacher_logits" else RESULT_FILES)
        self.jobs.append(job)
        self.jobs.sort(key=lambda job: ORDER.index(job.stage))
        if not book.complete:
            study.begin_session(book)
            if study.is_parallel(stage):
                study.run_parallel(job)
        if book.complete:
            self._close(job)

    def _close(self, job: Job) -> None:
        job.open = False
        stage = self._stages[job.stage]
        stage.facts = self._utilisation(job.stage)
        try:
            self._study.close(stage)
        except StorageError:
            raise
        except StudyFailedError as error:
            self._note_failure(error)
        else:
            self._ended(stage)

    def _ended(self, stage: Stage) -> None:
        self._done.add(stage.name)
        self._study.show(stage)
        self._show_stages()

    def _note_failure(self, error: StudyFailedError) -> None:
        self.failures.append(error)
        self._show_stages()

    def _show_stages(self, also: str | None = None) -> None:
        running = [job.stage for job in self.jobs if job.open] + ([also] if also else [])
        if running:
            self._study.display.now(*running)

    def _utilisation(self, name: str) -> dict[str, float]:
        """How many trials could run while a stage did, on average, and the share of that which was used, by it or by
        others; nothing where nothing ran."""
        used, offered, seconds = (now - then for now, then in zip(self._meter.read(), self._read_at_begin[name],
                                                                  strict=True))
        return {"utilisation": used / offered, "slots": offered / seconds} if offered else {}


class Meter:
    """How many slots were used, and how many there were, summed over time."""

    def __init__(self) -> None:
        self._at, self._used_now, self._slots_now = time.monotonic(), 0, 0
        self._used = self._offered = self._seconds = 0.0

    def set(self, used: int, slots: int) -> None:
        self.read()
        self._used_now, self._slots_now = used, slots

    def read(self) -> tuple[float, float, float]:
        """Slot-seconds used and offered, and the seconds since there have been any, so far."""
        now = time.monotonic()
        passed, self._at = now - self._at, now
        if self._slots_now:
            self._used += passed * self._used_now
            self._offered += passed * self._slots_now
            self._seconds += passed
        return self._used, self._offered, self._seconds

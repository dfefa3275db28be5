"""The driver: checks a study, runs its unfinished stages and writes its outputs."""

from __future__ import annotations

import time
from dataclasses import asdict

from kdstudy.analysis.stage_names import CONFIRM_STAGES
from kdstudy.errors import StorageError, StudyFailedError, UserError
from kdstudy.planning import preflight
from kdstudy.stages.base import Output
from kdstudy.stages.order import NAMES, OUTPUTS, up_to
from kdstudy.store import files
from kdstudy.study import Study
from kdstudy.trainables.messages import one_line
from kdstudy.tune.cluster import cluster_address
from kdstudy.tune.connection import Connection, KeptRay
from kdstudy.tune.own_ray import RayLostError
from kdstudy.tune.pipeline import Pipeline
from kdstudy.tune.tuner import KEPT, TRIES
from kdstudy.watch.display import Display
from kdstudy.watch.progress import Pending
from kdstudy.watch.trackers import feed

REPORT = b'"event": "report"'


def run(study: Study, display: Display, *, until: str = NAMES[-1], address: str | None = None,
        kept: KeptRay | None = None) -> bool:
    """Run every unfinished stage and output up to and including `until`.

    address: a running Ray cluster; by default RAY_ADDRESS, else this machine. kept: the connection to it that several
    studies share. Returns whether there was anything to do. Raises UserError, StudyFailedError, InterruptedStudyError.
    """
    driver = _Driver(study, display, address, up_to(study.config, until), kept)
    return driver.run()


class _Driver:
    def __init__(self, study: Study, display: Display, address: str | None, wanted: set[str],
                 kept: KeptRay | None):
        self._study, self._display, self._address, self._kept = study, display, address, kept
        self._stages = [name for name in study.stages if name in wanted]
        self._outputs = [output for output in OUTPUTS
                         if output.name in wanted and output.is_wanted(study.config)]

    def run(self) -> bool:
        study, storage = self._study, self._study.storage
        if storage.uri is None:
            preflight.check_writable(storage)
        with (storage.driven(), files.full_disk_noticed(study.folder),
              feed.watched(study.config, storage, [name for name, stage in study.stages.items() if stage.scored],
                           self._display.note)):
            files.remove_drafts(study.folder)
            study.begin(self._display.note)
            did_work, failure = False, None
            try:
                did_work = self._run_stages()
            except StorageError:
                raise
            except StudyFailedError as error:
                if not self._has_answer:
                    raise
                failure = error
                self._display.note(f"{error}. What does not depend on it is written all the same")
            if failure is None:
                storage.forget_tune()  # else what was cut off goes on from its checkpoints there
            written = self._write_outputs(failure)
        return did_work or written

    @property
    def _has_answer(self) -> bool:
        """Whether the confirmation is done, so that a control or an audit that failed need not hold back its report."""
        return all(name in self._stages and self._study.stages[name].is_finished for name in CONFIRM_STAGES)

    def _write_outputs(self, failure: StudyFailedError | None) -> bool:
        """Write the outputs. Returns whether anything changed. failure: of a stage, raised at the end."""
        changed = False
        for output in self._outputs:
            try:
                changed |= self._write(output)
            except (UserError, StudyFailedError) as error:
                if failure is None or isinstance(error, StorageError):
                    raise
                self._display.note(f"{output.name} could not be written: {error}")
        if failure is not None:
            raise failure
        return changed

    def _run_stages(self) -> bool:
        """Run the stages. If the Ray that was started for them dies, start it again and go on from the record, as a
        new command would. Returns whether there was anything to do."""
        study, in_vain, reached = self._study, 0, -1
        while True:
            connection = Connection(self._address, study.config.resources, preflight.cluster_checks(study),
                                    self._display.note, study.note_machine, self._kept)
            pipeline = Pipeline(study, self._stages, self._display, connection, self._before_work)
            try:
                with connection:
                    pipeline.run()
                return pipeline.did_work or reached >= 0
            except RayLostError as error:
                now = sum(path.read_bytes().count(REPORT) for path in study.folder.glob("*/record.jsonl"))
                in_vain, reached = in_vain + 1 if now == reached else 1, now
                if in_vain == TRIES:
                    raise StudyFailedError(f"{error}, {TRIES} times without progress in between; {KEPT}") from None
                self._display.note(f"{error}. It is started again, and the study goes on from its record")

    def _before_work(self) -> None:
        """Check the settings and this machine before the first trial, and download pretrained weights once.

        Raises UserError."""
        study = self._study
        preflight.check_settings(study, self._address, self._stages)
        if cluster_address(self._address) is None:
            preflight.check_here(study, probed=study.storage.uri is None)
        for section in preflight.pretrained_sections(study):
            self._display.update("fetching pretrained weights")
            study.context.initial_weights(section)
        pending = {name: Pending(load.runs, load.epochs, load.protected or load.runs, bool(load.rungs), load.paced_by)
                   for name in self._stages if (load := study.stages[name].workload()).runs}
        self._display.expect(pending)
        study.note_expected({name: asdict(one) for name, one in pending.items()})
        self._display.update("connecting to Ray")

    def _write(self, output: Output) -> bool:
        started, study = time.monotonic(), self._study
        if reason := output.missing(study.folder):
            self._display.note(reason)
            return False
        self._display.begin(output.name, text="writing")
        try:
            changed = output.write(study.config, study.folder)
        except StorageError:
            raise
        except Exception as error:
            if output.dispensable and not files.is_full(error):
                self._display.note(f"{output.name} could not be written: {one_line(error)}")
                return False
            if not isinstance(error, ValueError):
                raise
            # As in `kdstudy report`.
            raise StudyFailedError(f"the files of {study.storage} are inconsistent: {one_line(error)}") from None
        finally:
            self._display.stop()
        self._display.end(output.name, f"{study.storage}/{output.path}", time.monotonic() - started,
                          reused=not changed)
        study.storage.publish(study.folder / output.published)
        return changed

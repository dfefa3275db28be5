"""The teacher_logits stage: compute the teacher's logits for every view once, in chunks that run as trials, or read
them from a given file. Where a loss reads the teacher's features, they are computed and kept beside the logits."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kdstudy.config.sections import TeacherSettings
from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import run_key
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.store import files
from kdstudy.store.predictions import copy_predictions
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, StageFiles, Whole
from kdstudy.trainables.files import (
    LOGITS_FILES,
    TEST_PREDICTIONS,
    UNLABELLED_FEATURES,
    UNLABELLED_LOGITS,
    VALIDATION_PREDICTIONS,
    VIEW_FEATURES,
    VIEW_LOGITS,
)
from kdstudy.trainables.paths import inside, remove
from kdstudy.trainables.settings import ModelSettings
from kdstudy.watch.display import show_bytes

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task, Teacher

PIECES = 5  # chunks per view seed, so that several workers share the work
FEW = 10  # largest logits of an image: what is proposed where all do not fit
# The stored arrays of a view seed, by the file of a chunk that is a part of each. The views come last, since their
# presence means that the others are there too.
STORED = {UNLABELLED_FEATURES: "unlabelled-features", VIEW_FEATURES: "features", UNLABELLED_LOGITS: "unlabelled",
          VIEW_LOGITS: "views"}


class TeacherLogitsDone(Done):
    cached: bool
    view_seeds: list[Whole]


class TeacherLogitsStage(Stage):
    name = "teacher_logits"
    needs = ("teacher",)
    loop = "teacher_logits"
    files = StageFiles(TeacherLogitsDone, frozenset({"teacher_logits"}))
    scored = False
    result_files = LOGITS_FILES
    source: ClassVar[str] = "teacher"  # the stage whose model it is
    section: ClassVar[str] = "teacher"  # of the study file, which describes that

    @classmethod
    def images_per_epoch(cls, data: dict[str, Any], trial: TrialState) -> int:
        views = trial.parameters.get("view_count", 0)
        return views * (data["student_train"] + data.get("unlabelled", 0)) if views else \
            data["validation"] + data["test"]

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        shutil.copyfile(source / VALIDATION_PREDICTIONS, target / VALIDATION_PREDICTIONS)
        copy_predictions(source / TEST_PREDICTIONS, target / TEST_PREDICTIONS, logits=True)

    def inputs(self) -> list[Any]:
        config, teacher = self.config, self._source
        inputs = [teacher.weights_hash, teacher.done["members"], self.context.image_hashes, self.context.image_size,
                  students.view_inputs(config), config.train.epochs, self.settings.precision]
        return [*inputs, *self._what_is_kept]

    @property
    def _what_is_kept(self) -> list[str]:
        """What it adds to the inputs that features are kept too, or not all logits."""
        return (["and its features"] if self.config.reads_features else []) + students.truncation(self.context)

    @property
    def settings(self) -> TeacherSettings:
        return self.config.teacher_in(self.section)

    @property
    def _source(self) -> Any:
        return self.context.stage(self.source)

    @property
    def taught_as(self) -> str:
        """What the stages that learn from these logits have as `learns_from`."""
        return self.name

    @property
    def view_seeds(self) -> list[int]:
        """The view seeds whose logits are wanted."""
        return self.context.view_seeds

    @property
    def logits_bytes(self) -> int:
        """The size in bytes of the logits for all views."""
        return self._bytes_of(self.config.views.logits_width(len(self.context.splits.class_names)))

    @property
    def fits(self) -> bool:
        """Whether the logits fit into views.cache_gib, so that they are computed once and stored."""
        return self.logits_bytes <= self._budget

    @property
    def features_bytes(self) -> int:
        """The size in bytes of the features for all views; 0 if no loss reads them."""
        return self._bytes_of(self.feature_width)

    @property
    def features_fit(self) -> bool:
        """Whether a loss reads the features and they fit beside the logits."""
        return self.config.reads_features and self.logits_bytes + self.features_bytes <= self._budget

    @cached_property
    def feature_width(self) -> int:
        """How many features there are for an image, of all models together; 0 if no loss reads them."""
        if not self.config.reads_features:
            return 0
        from kdstudy.trainables import models  # imports torch

        return sum(models.feature_width(model, **self.context.shape) for model in self._source.models)

    @property
    def _budget(self) -> float:
        """In bytes: of several teachers that a trial may have, each has its part."""
        return self.config.views.cache_gib * 2**30 / len(self.config.teacher_choice)

    def _bytes_of(self, numbers: int) -> int:
        """The size in bytes of so many numbers of 16 bits for every image of every view."""
        return 2 * len(self.view_seeds) * self.config.view_count * self.context.splits.seen_by_student * numbers

    def is_current(self) -> bool:
        folder = self.folder
        done = folder.done
        if done is None:
            return False
        kept = all(self._is_kept(folder.path, seed) for seed in self.view_seeds)
        # A packed study has no logits; they are needed only while a stage that learns from them is unfinished.
        if kept or (set(done["view_seeds"]) >= set(self.view_seeds) and self._learners_done()):
            return True
        return not self.is_given and not self.fits

    def _is_kept(self, folder: Path, view_seed: int) -> bool:
        """Whether all that is wanted of a view seed is stored."""
        def is_there(kind: str) -> bool:
            return files.is_whole_array(folder / f"{kind}-{view_seed}.npy")

        return is_there("views") and (is_there("features") or not self.features_fit)

    def _learners_done(self) -> bool:
        return all(stage.is_current() for stage in self.context.stages.values() if stage.learns_from == self.taught_as)

    # -- computed by the study ----------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        return 1

    def runs(self) -> tuple[TrialState, ...]:
        """Return the missing chunks: the held-out images, then the views, those of the search first."""
        folder, runs = self.folder.path, []
        if not (folder / TEST_PREDICTIONS).exists():
            runs.append(TrialState(0, {"first_view": 0, "view_count": 0}, 0, 0, "teacher_logits", True,
                                   "held-out images"))
        for view_seed in self._kept_seeds:
            if not self._is_kept(folder, view_seed):
                runs += self._pieces(view_seed)
        return tuple(runs)

    @property
    def _kept_seeds(self) -> list[int]:
        """The view seeds whose logits are stored: none if the logits exceed views.cache_gib."""
        return self.view_seeds if self.fits else []

    def _pieces(self, view_seed: int) -> list[TrialState]:
        """Return the runs that compute the logits for the views of one view seed, in order."""
        parts = [views for views in np.array_split(range(self.config.view_count), PIECES) if len(views)]
        return [TrialState(0, {"first_view": int(views[0]), "view_count": len(views)}, 0, view_seed, "teacher_logits",
                           True, f"views {views[0]} to {views[-1]} of view seed {view_seed}") for views in parts]

    def task(self) -> Task:
        from kdstudy.trainables.task import Teacher  # imports torch

        return replace(students.plain_task(self.context), teacher=Teacher(self._source.members()),
                       test=self.context.splits.test, keep_weights=True, wants_features=self.features_fit)

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        """Return a check that a chunk's own files, or the array merged from them, exist."""

        def has_logits(piece: TrialState) -> bool:
            own = self.context.folder / piece.checkpoint["path"]
            if piece.parameters["view_count"]:
                wanted = (VIEW_LOGITS, VIEW_FEATURES) if self.features_fit else (VIEW_LOGITS,)
                return (self._is_kept(folder.path, piece.view_seed)
                        or all(files.is_whole_array(own / name) for name in wanted))
            return any((path / TEST_PREDICTIONS).exists() for path in (folder.path, own))

        return has_logits

    def close(self, folder: StageFolder) -> None:
        """Merge the chunks and write the done-mark. Raises StudyFailedError if a chunk failed."""
        record = folder.record()
        runs = record.trials.values()
        if failed := [run for run in runs if run.state == "failed"]:
            raise StudyFailedError(f"{self.name}: {failed[0].label} failed: {failed[0].reason}; run the same "
                                   "command again to retry")
        pieces = {run_key(run): inside(self.context.folder, run.checkpoint["path"]) for run in runs}
        for run in runs:
            if not run.parameters["view_count"] and pieces[run_key(run)].exists():
                for name in (VALIDATION_PREDICTIONS, TEST_PREDICTIONS):
                    files.copy_file(pieces[run_key(run)] / name, folder.path / name)
        for view_seed in self._kept_seeds:
            if not self._is_kept(folder.path, view_seed):
                own = [pieces[run_key(piece)] for piece in self._pieces(view_seed)]
                self._save_views(folder, view_seed, self._joined(own))
                for piece in own:  # right away, since the chunks take as much space as the merged array
                    remove(piece, folder.path, if_possible=True)
        remove(folder.path / "runs", folder.path, if_possible=True)
        self._finish(folder, self.fits, record.seconds)

    def _joined(self, pieces: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
        """Concatenate the chunks' arrays to (V, N, C or D), and to (V, U, C or D) for unlabelled images, one by one."""
        without = [UNLABELLED_LOGITS, UNLABELLED_FEATURES] if self.context.splits.unlabelled is None else []
        without += [] if self.features_fit else [VIEW_FEATURES, UNLABELLED_FEATURES]
        for name, kind in STORED.items():
            if name not in without:
                yield kind, np.concatenate([files.read_array(piece / name) for piece in pieces])

    def _save_views(self, folder: StageFolder, view_seed: int, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        for kind, array in arrays:
            path = folder.path / f"{kind}-{view_seed}.npy"
            files.write_array(path, array)
            self.context.storage.publish(path)

    def _finish(self, folder: StageFolder, fits: bool, seconds: float) -> None:
        folder.finish({"outcome": self.show_size(fits), "seconds": seconds, "cached": fits,
                       "view_seeds": self.view_seeds if fits else []})

    def show_size(self, fits: bool) -> str:
        """Say what is stored of how many logits and how much that is, or why nothing is. fits: whether it is."""
        images, size = self.context.splits.seen_by_student, show_bytes(self.logits_bytes)
        if fits:
            return (f"{self.config.view_count} views × {images} images × {len(self.view_seeds)} view seeds, "
                    f"{self._show_kept()}{size} in fp16" + self._show_features())
        cache, teachers = f"{self.config.views.cache_gib:g} GiB of views.cache_gib", len(self.config.teacher_choice)
        room = f"the {cache}" if teachers == 1 else f"its part, 1/{teachers} of the {cache}"
        return f"would need {size}, more than {room}: the teacher runs in the loop instead"

    def _show_kept(self) -> str:
        classes = len(self.context.splits.class_names)
        kept = self.config.views.kept_logits(classes)
        return "" if kept is None else f"the {kept} largest logits of {classes}, "

    def show_remedy(self) -> str:
        """What to set so that logits that do not fit would; empty if nothing helps."""
        if self.fits:
            return ""
        few = self.config.views.model_copy(update={"top_k": FEW})
        packed = self._bytes_of(few.logits_width(len(self.context.splits.class_names)))
        return f" (views.top_k = {FEW} would need {show_bytes(packed)})" if packed <= self._budget else ""

    def _show_features(self) -> str:
        if not self.features_bytes:
            return ""
        size = show_bytes(self.features_bytes)
        if self.features_fit:
            return f", and {self.feature_width} features of each, {size}"
        return f"; views.cache_gib has no room for its features, {size}: for these the teacher runs in the loop"

    # -- given --------------------------------------------------------------------------------------------------------

    @property
    def is_given(self) -> bool:
        return bool(self.settings.logits)

    def take_given(self, folder: StageFolder, predict: Callable[[Task], np.ndarray]) -> None:
        """Unpack the given file of logits into the files that computed logits would have."""
        import torch

        from kdstudy.trainables.predictions import write_logits  # imports torch

        started, given = time.monotonic(), self._source.given_logits
        for view_seed in self.view_seeds:
            labelled, unlabelled = given.views(view_seed)
            others = [] if unlabelled is None else [("unlabelled", self._packed(unlabelled))]
            self._save_views(folder, view_seed, [*others, ("views", self._packed(labelled))])
        files.write_array(folder.path / VALIDATION_PREDICTIONS, given.validation.astype(np.int64))
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / TEST_PREDICTIONS
            write_logits(torch.from_numpy(given.test.astype(np.float32)), self.context.splits.test.labels, path)
            files.write_bytes(folder.path / TEST_PREDICTIONS, path.read_bytes())
        self._finish(folder, True, time.monotonic() - started)

    def _packed(self, logits: np.ndarray) -> np.ndarray:
        """Given logits (V, N, C) as this study keeps them, one view at a time."""
        keep = self.config.views.kept_logits(logits.shape[-1])
        if keep is None:
            return logits
        import torch

        from kdstudy.trainables import top_k  # imports torch

        return np.stack([top_k.pack(torch.from_numpy(view), keep).numpy() for view in logits])

    # -- for other stages ---------------------------------------------------------------------------------------------

    def teacher(self, view_seeds: list[int]) -> Teacher:
        """Return the teacher with its logits for these view seeds, and its features if a loss reads them; with its
        models only if some of these are missing.

        Raises MissingTeacherError, FileNotFoundError if the stage is not done, StudyFailedError if a file is damaged.
        """
        from kdstudy.trainables.task import Teacher  # imports torch

        folder = self.folder.path

        def stored(kind: str) -> dict[int, np.ndarray]:
            paths = {seed: folder / f"{kind}-{seed}.npy" for seed in view_seeds}
            return {seed: files.read_array(path) for seed, path in paths.items() if path.exists()}

        logits, features = stored("views"), stored("features")
        is_whole = all(len(known) == len(view_seeds)
                       for known in ([logits, features] if self.config.reads_features else [logits]))
        members = () if is_whole else self._source.members()
        return Teacher(members, files.read_array(folder / VALIDATION_PREDICTIONS), logits, stored("unlabelled"),
                       features, stored("unlabelled-features"))

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        splits, models = self.context.splits, self._source.models
        views = len(self._kept_seeds) * self.config.view_count if models else 0
        runs = min(PIECES, self.config.view_count) * len(self._kept_seeds) if views else 0
        workers, share = self.config.resources.teacher_workers, splits.seen_by_student / len(splits.train)
        trained = students.passes(self.settings.train_settings)
        return Workload(runs=runs, epochs=views / runs if runs else 0, images=splits.seen_by_student, models=models,
                        passes=1, paced_by={self.source: workers * share / trained})

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        kept = self.logits_bytes if self.is_given or self.fits else 0
        kept += self.features_bytes if self.features_fit else 0
        # Chunks are deleted as they are merged, one view seed at a time.
        what = "logits and features" if self.features_fit else "logits"
        return Space(kept // runs if runs else 0, kept + kept // len(self.view_seeds),
                     f"the teacher's {what} (none with a smaller views.cache_gib)")

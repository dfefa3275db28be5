"""A study: its settings, where it is stored, its images and its stages, and what readers of its folder find.

Every stage is a function of its own part of the settings and of its inputs. Its folder is named after the fingerprint
of both, and carries a done-mark that is written last. That is all there is to resume, reuse and reproducibility: what
is done is skipped, what was cut off goes on from its record, and a stage that a study beside this one has done is
taken over.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

from kdstudy.config.load import STUDY_FILE
from kdstudy.config.models import check_models
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.stages.base import Stage, StageFolder
from kdstudy.stages.context import Context
from kdstudy.stages.order import STAGES
from kdstudy.stages.search import SearchStage
from kdstudy.store import check, files
from kdstudy.store.storage import Storage

MOST_CHANGES = 5  # of settings that are told one by one


class Study:
    """Knows nothing of Ray. Its images are read, and weights fetched, when they are first asked for."""

    def __init__(self, config: StudyConfig, storage: Storage):
        self.config, self.storage, self.folder = config, storage, storage.folder
        self.context = Context(config, storage, STAGES)
        self._description: dict[str, Any] = {}

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that train or evaluate models, by name, in their order."""
        return self.context.stages

    @property
    def searches(self) -> list[SearchStage]:
        return [stage for stage in self.stages.values() if isinstance(stage, SearchStage)]

    def check_models(self) -> None:
        """Raises UserError where timm does not know the models, or they do not fit the images or what is given."""
        check_models(self.config, **self.context.shape)
        self.context.stage("teacher").check_given()

    # -- a stage's folder ---------------------------------------------------------------------------------------------

    def opened(self, stage: Stage) -> tuple[StageFolder, bool]:
        """The folder of a stage whose needs are done, and whether it was taken over just now from a neighbour, a study
        beside this one that did the same. Raises UserError where its files are damaged."""
        stage.prepare()
        folder = stage.folder
        taken = self._take_over(stage, folder)
        check.check_stage(stage.name, folder.path, stage.files)
        self._enlist(folder)
        return folder, taken

    def _take_over(self, stage: Stage, folder: StageFolder) -> bool:
        if folder.path.exists() and any(folder.path.iterdir()):
            return False
        for path in self.storage.neighbours(folder.path.name):
            try:  # it may be a stranger's
                check.check_stage(stage.name, path, stage.files)
            except UserError:
                continue
            neighbour = StageFolder(stage.name, path, self.storage, stage.files)
            if stage.may_take_over(neighbour):
                files.copy_stage(path, folder.path)
                folder.finish(neighbour.done | {"taken_from": path.parent.name})
                return True
        return False

    # -- what readers of the study find -------------------------------------------------------------------------------

    def begin(self, note: Callable[[str], None]) -> None:
        """Write down the settings and what the images are. note: told where settings differ from those before.

        Raises UserError where the settings cannot work: they do not take the place of those that do.
        """
        splits, settings = self.context.splits, self.config.to_toml()
        if not files.has_text(self.folder / STUDY_FILE, settings):
            self.check_models()
            if changes := self._changes(settings):
                note(changes)
            files.write_text(self.folder / STUDY_FILE, settings)
            self.storage.publish(self.folder / STUDY_FILE)
        counts = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
        counts["unlabelled"] = len(splits.unlabelled) if splits.unlabelled else 0
        earlier = files.read_json(self.folder / "stages.json")
        self._description = {
            "name": self.config.name,
            "data": {**counts, "classes": list(splits.class_names), "channels": splits.channels,
                     "image_size": self.context.image_size, "duplicates": splits.duplicates,
                     "dropped": splits.dropped},
            "epochs": self.config.train.epochs,
            "rungs": self.config.rungs,
            "stages": self._existing_stages(),
            **{name: earlier.get(name) if isinstance(earlier, dict) else None for name in ("machine", "expected")},
        }
        self._save_description()

    def _changes(self, settings: str) -> str | None:
        """Which settings are not what the study was begun with: a --set may have been forgotten."""
        try:
            earlier = flat(tomllib.loads((self.folder / STUDY_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
        now = flat(tomllib.loads(settings))
        changes = [f"{name} = {now.get(name, 'its default')} instead of {earlier.get(name, 'its default')}"
                   for name in dict.fromkeys([*now, *earlier]) if now.get(name) != earlier.get(name)]
        if not changes:
            return None
        more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
        return (f"{self.storage} was run with other settings before; now {', '.join(changes[:MOST_CHANGES])}{more}. "
                f"`kdstudy run {self.storage}` alone goes on with what a study has")

    def _existing_stages(self) -> dict[str, str]:
        """The stages that have begun with the settings as they are now; older ones do not belong to this study."""
        found = {}
        for name, stage in self.stages.items():
            try:
                path = stage.folder.path
            except MissingTeacherError:
                continue
            if path.is_dir():
                found[name] = path.name
        return found

    def _enlist(self, folder: StageFolder) -> None:
        """Tell readers of the study which folder serves a stage now."""
        if self._description["stages"].get(folder.name) != folder.path.name:
            self._description["stages"][folder.name] = folder.path.name
            self._save_description()

    def note_machine(self, machine: str) -> None:
        """Tell readers of the study what it runs on."""
        self._description["machine"] = machine
        self._save_description()

    def note_expected(self, expected: dict[str, Any]) -> None:
        """Tell readers of the study what its stages will run: `kdstudy.watch.progress.Pending` by stage, as dicts."""
        self._description["expected"] = expected
        self._save_description()

    def _save_description(self) -> None:
        files.write_json(self.folder / "stages.json", self._description)
        self.storage.publish(self.folder / "stages.json")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A study file's settings by their full names."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found

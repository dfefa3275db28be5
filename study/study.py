"""A study: its settings, storage, images and stages, and the files that describe it to readers.

Each stage depends only on some of the settings and on its inputs. Its folder is named after the fingerprint of both,
and its done-mark is written last. This gives resumption and reuse: finished stages are skipped, interrupted ones
continue from their records, and finished stages of sibling studies with the same fingerprint are copied.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tomllib
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from kdstudy.analysis.number_text import listed
from kdstudy.analysis.settings import flat
from kdstudy.config.load import STUDY_FILE
from kdstudy.config.models import (
    check_controls,
    check_logits,
    check_losses,
    check_models,
    check_read,
    check_views,
    notes_on_losses,
    notes_on_teachers,
)
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.stages.base import Stage, StageFolder
from kdstudy.stages.context import Context
from kdstudy.stages.order import stages_of
from kdstudy.stages.search import SearchStage
from kdstudy.stages.teacher import TeacherStage
from kdstudy.stages.teacher_replicates import FurtherTeacher
from kdstudy.store import check, files
from kdstudy.store.storage import Storage

UNREADABLE_FILE = "unreadable.csv"
MOST_CHANGES = 5  # to list individually in messages about changed settings


class Study:
    """A study, independent of Ray. Images and pretrained weights are loaded on first use."""

    def __init__(self, config: StudyConfig, storage: Storage):
        self.config, self.storage, self.folder = config, storage, storage.folder
        self.context = Context(config, storage, stages_of(config))
        self._description: dict[str, Any] = {}

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that train or evaluate models, by name, in order."""
        return self.context.stages

    @property
    def searches(self) -> list[SearchStage]:
        return [stage for stage in self.stages.values() if isinstance(stage, SearchStage)]

    @property
    def teachers(self) -> list[TeacherStage]:
        """The teachers that trials of the distillation may have, that of [teacher] first."""
        return [stage for stage in self.stages.values() if isinstance(stage, TeacherStage)
                and not isinstance(stage, FurtherTeacher)]

    def check_models(self) -> None:
        """Raises UserError where timm lacks a model, where a model, given teacher or augmentation does not fit the
        images, where a loss of the user's own is none, where a loss reads what a model does not have, or where a
        control does not suit the images."""
        check_models(self.config, **self.context.shape)
        check_views(self.config, self.context.splits.channels)
        check_logits(self.config, self.context.shape["classes"])
        check_losses(self.config, self.context.shape["classes"])
        check_controls(self.config, self.context.shape["classes"])
        for teacher in self.teachers:
            teacher.check_given()
            check_read(self.config, teacher.section, teacher.named_models, **self.context.shape)

    @property
    def notes(self) -> list[str]:
        """What there is to know of the images, the losses and the teachers before a study runs."""
        return [*self.context.splits.notes, *notes_on_losses(self.config), *notes_on_teachers(self.config)]

    # -- a stage's folder ---------------------------------------------------------------------------------------------

    def opened(self, stage: Stage) -> tuple[StageFolder, bool]:
        """Open the folder of a stage whose dependencies are done.

        Returns the folder, and whether it was just copied from a sibling study that had finished the same stage.
        Raises UserError where its files are damaged."""
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
            try:  # the sibling study may be untrusted
                check.check_stage(stage.name, path, stage.files)
            except UserError:
                continue
            neighbour = StageFolder(stage.name, path, self.storage, stage.files)
            if stage.may_take_over(neighbour):
                done = neighbour.done
                files.copy_stage(path, folder.path)
                folder.finish(done | {"taken_from": path.parent.name})
                return True
        return False

    # -- files for readers of the study -------------------------------------------------------------------------------

    def begin(self, note: Callable[[str], None]) -> None:
        """Write the settings and a description of the images. note: called with what there is to know about images
        and losses, and with a message if settings have changed.

        Raises UserError where the settings are invalid, or would replace the report of other images or of another
        student; the earlier settings are then kept.
        """
        splits, settings = self.context.splits, self.config.to_toml()
        if not files.has_text(self.folder / STUDY_FILE, settings):
            self.check_models()
            if changes := self._changes(settings):
                self._check_same_question(changes)
                note(self._what_becomes_of(changes))
            files.write_text(self.folder / STUDY_FILE, settings)
            self.storage.publish(self.folder / STUDY_FILE)
        for text in self.notes:
            note(text)
        if self._list_unreadable():
            note(f"{self.storage}/{UNREADABLE_FILE} names the files that were left out, and why")
        counts = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
        counts["unlabelled"] = len(splits.unlabelled) if splits.unlabelled else 0
        earlier = files.read_json(self.folder / "stages.json")
        self._description = {
            "name": self.config.name,
            "data": {**counts, "classes": list(splits.class_names), "channels": splits.channels,
                     "image_size": self.context.image_size, "duplicates": splits.duplicates,
                     "dropped": splits.dropped, **({"notes": list(splits.notes)} if splits.notes else {})},
            "epochs": self.config.train.epochs,
            "rungs": self.config.rungs,
            "wanted": list(self.stages),
            "stages": self._existing_stages(),
            **{name: earlier.get(name) if isinstance(earlier, dict) else None for name in ("machine", "expected")},
        }
        self._save_description()

    def _list_unreadable(self) -> bool:
        """Write which image files were left out, and why, as a table. Returns whether there are any."""
        path, unreadable = self.folder / UNREADABLE_FILE, self.context.splits.unreadable
        if unreadable or path.exists():  # an earlier list may be out of date
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *map(astuple, unreadable)])
            if not files.has_text(path, text.getvalue()):
                files.write_text(path, text.getvalue())
                self.storage.publish(path)
        return bool(unreadable)

    def _changes(self, settings: str) -> dict[str, str]:
        """Which settings differ from the earlier ones, by full name: what they are and were. Not `about`, which decides
        nothing."""
        earlier, now = flat(self._earlier()), flat(tomllib.loads(settings))
        if not earlier:
            return {}
        return {name: f"{name} = {now.get(name, 'its default')} instead of {earlier.get(name, 'its default')}"
                for name in dict.fromkeys([*now, *earlier]) if now.get(name) != earlier.get(name) and name != "about"}

    def _earlier(self) -> dict[str, Any]:
        """The settings that the folder has been run with; empty if there are none."""
        try:
            earlier = tomllib.loads((self.folder / STUDY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        with contextlib.suppress(ValueError):  # a setting that did not exist then had its default
            earlier = StudyConfig.model_validate(earlier).to_values()
        return earlier

    def _check_same_question(self, changes: dict[str, str]) -> None:
        """Raises UserError where a finished study would lose its report and export to one of other images or another
        student, which nobody expects of a folder. Images that have moved stay the same."""
        earlier = self._earlier()
        asked = [name for name in changes if name.startswith(("data.", "student."))]
        written = [name for name in ("results", "export") if (self.folder / name).is_dir()]
        if not asked or not written or earlier.get("smoke") or self._knows_its_baseline(earlier):
            return
        what = "another student" if any(name.startswith("student.") for name in asked) else "other images"
        raise UserError(f"{self.storage} is a study of {what}: {_first(changes, asked)}; give this one a folder of its "
                        f"own, --dir {self.storage}-2, beside it, which takes over what both share, or remove "
                        f"{' and '.join(f'{self.storage}/{name}' for name in written)}, which it would replace")

    def _knows_its_baseline(self, earlier: dict[str, Any]) -> bool:
        """Whether the earlier settings with the present images and student lead to a baseline that has been run."""
        present = self.config.to_values()
        try:
            config = StudyConfig.model_validate(earlier | {name: present[name] for name in ("data", "student")})
        except ValueError:
            return False
        context = Context(config, self.storage, stages_of(config))
        context.splits = self.context.splits  # rather than read them again
        return context.stage("baseline").folder.path.is_dir()

    def _what_becomes_of(self, changes: dict[str, str]) -> str:
        """Tell what other settings mean for what was run before, since the user may have forgotten a --set."""
        found = self._existing_stages()
        kept = [name.replace("_", " ") for name in found]
        anew = [name.replace("_", " ") for name in self.stages if name not in found]
        fate = (f"{listed(kept, 'and')} {'goes' if len(kept) == 1 else 'go'} on from what there is"
                if kept else "all stages begin anew")
        fate += f", {listed(anew, 'and')} {'begins' if len(anew) == 1 else 'begin'} anew" if kept and anew else ""
        return (f"{self.storage} was run with other settings before; now {_first(changes, list(changes))}. So {fate}. "
                "Report and export will be those of the new settings; what was trained with the earlier ones is kept, "
                f"and they come back with these. `kdstudy run {self.storage}` keeps a study's own settings")

    def _existing_stages(self) -> dict[str, str]:
        """The folders of stages started with the current settings, by stage name."""
        folders = {name: stage.known_folder for name, stage in self.stages.items()}
        return {name: folder.path.name for name, folder in folders.items() if folder and folder.path.is_dir()}

    def _enlist(self, folder: StageFolder) -> None:
        """Record in stages.json which folder belongs to a stage."""
        if self._description["stages"].get(folder.name) != folder.path.name:
            self._description["stages"][folder.name] = folder.path.name
            self._save_description()

    def note_machine(self, machine: str) -> None:
        """Record in stages.json which machine the study runs on."""
        self._description["machine"] = machine
        self._save_description()

    def note_expected(self, expected: dict[str, Any]) -> None:
        """Tell readers of the study what its stages will run: `kdstudy.watch.progress.Pending` by stage, as dicts."""
        self._description["expected"] = expected
        self._save_description()

    def _save_description(self) -> None:
        files.write_json(self.folder / "stages.json", self._description)
        self.storage.publish(self.folder / "stages.json")


def _first(changes: dict[str, str], names: list[str]) -> str:
    """The first of some changes, and how many there are besides."""
    more = f" and {len(names) - MOST_CHANGES} more" if len(names) > MOST_CHANGES else ""
    return ", ".join(changes[name] for name in names[:MOST_CHANGES]) + more

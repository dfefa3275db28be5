"""The pipeline: teacher, baseline, teacher_logits, distill, finalists, confirmation of both arms, report, export.

Every stage is a function of its own part of the settings and of its inputs. Its folder is named after the fingerprint
of both, and carries a done-mark that is written last. That is all there is to resume, reuse and reproducibility: what
is done is skipped, what was cut off goes on from its record, and a stage that another study beside this one has done
is taken over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from analysis.results import StudyFiles
from study import finalists, logits_file, preflight, schema, storage, warm_start, watch
from study.cluster import Share, cluster_address, cluster_share, connected, local_share, waiting_note
from study.config import OUTPUTS, STAGE_NAMES, STUDY_FILE, StudyConfig, check_models, trained_models
from study.display import Display, show_bytes
from study.errors import MissingTeacherError, StudyFailedError, UserError
from study.home import Home
from study.logits_file import LogitsFile
from study.progress import show_parameters
from study.record import Record, TrialState
from study.search import (
    METRIC,
    ListProposer,
    OptunaProposer,
    Proposer,
    TrialBook,
    run_key,
    search_view_seed,
    winner,
    write_optuna_file,
)
from study.slots import ClusterSlots, Slots
from trainables import data
from trainables.data import ImageSet, Splits
from trainables.files import TEST_ANSWERS, UNLABELLED, VALIDATION, VIEWS
from trainables.seeds import small_seed
from trainables.settings import ModelSettings, Settings

if TYPE_CHECKING:  # they import torch, which a finished study can do without
    from study.tuner import Job
    from trainables.models import Trained
    from trainables.task import Member, Task, Teacher

# Stages of one phase may run at the same time; what they need of each other is in `pipeline`.
# The baseline's finalists and confirmation are stages of their own, so that studies with another teacher share them.
PHASES = (("teacher", "baseline", "teacher_logits", "distill"), tuple(finalists.STAGES),
          ("confirm_baseline", "confirm"))
SEARCHES = ("baseline", "distill")
CONFIRMATIONS = {"confirm_baseline": "baseline", "confirm": "distill"}  # and the search whose winner they retrain
PIECES = 5  # into which a view seed's views are cut, so that they are spread over workers
ONLY = "only {} tuned"  # the configuration that leaves temperature and alpha at their defaults
# Raised when the meaning of a stage's files changes, so that older folders are not taken for current ones.
FORMAT = 2


def fingerprint(*parts: Any) -> str:
    """Ten hexadecimal digits that change with anything in `parts` (JSON values)."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def hash_images(images: ImageSet) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in (images.images, images.labels):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def hash_input(path: Path) -> str:
    """The hash of a file that a user hands in. Fingerprints ask often, so it is read again only if it has changed."""
    status = path.stat()
    return _hash_known(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _hash_known(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


@dataclass
class Stage:
    """A stage's folder and what its done-mark says."""

    name: str
    path: Path
    home: Home
    facts: dict[str, Any] = field(default_factory=dict)  # for its done-mark, besides the outcome

    @property
    def done(self) -> dict[str, Any] | None:
        """What the done-mark says; None where there is none or where any of the stage's files has gone or is cut short.
        """
        done = storage.read_json(self.path / "done.json")
        return done if schema.is_done(self.name, done) and storage.vouched_for(self.path, done) else None

    @property
    def record_path(self) -> Path:
        return self.path / "record.jsonl"

    def record(self) -> Record:
        """The record, to be written to."""
        return Record(self.record_path, home=self.home)

    def finish(self, outcome: dict[str, Any]) -> None:
        storage.write_done(self.path, outcome | self.facts)
        self.home.publish(self.path)


@dataclass(frozen=True)
class Arm:
    """One row of the confirmation: a configuration of the baseline or of the distillation."""

    arm: str  # baseline, distilled
    configuration: str  # default, tuned, or ONLY of what both arms search
    parameters: dict[str, Any]
    trial: int | None  # its number in the search


class Study:
    """A study in its home. `run` brings it to its end, or to the end of a stage, from wherever it is."""

    def __init__(self, config: StudyConfig, home: Home, display: Display, address: str | None = None):
        self.config, self.home, self.display, self.address = config, home, display, address
        self.folder = home.folder
        self._ray = contextlib.ExitStack()
        self._share: Share | None = None
        self._slots: Slots | None = None
        self.did_work = False
        self._checked = False
        self._wanted = config.stages
        self._weights: dict[str, dict[str, np.ndarray] | None] = {}
        self._found: dict[str, dict[str, Any]] = {}

    # -- inputs -------------------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        try:
            return data.load(self.config.data)
        except ValueError as error:
            raise UserError(str(error)) from None

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        names = ("train", "student_train", "validation", "test", "unlabelled")
        return {name: hash_images(images) for name in names if (images := getattr(self.splits, name)) is not None}

    def initial_weights(self, section: str) -> dict[str, np.ndarray] | None:
        """What a section's training begins with; None is random. Fetched once, here, and handed to the workers."""
        from trainables import models

        if section not in self._weights:
            try:
                self._weights[section] = models.pretrained_weights(trained_models(self.config)[section], **self._shape)
            except ValueError as error:
                raise UserError(f"{section}.{error}") from None
        return self._weights[section]

    @property
    def _shape(self) -> dict[str, int]:
        """What the data ask of every model."""
        return {"classes": len(self.splits.class_names), "channels": self.splits.channels,
                "image_size": self.image_size}

    @cached_property
    def given_members(self) -> list[Trained]:
        """The models of a teacher that is trained already. Raises UserError where they do not fit the data."""
        from trainables import models

        members = []
        for folder in self.config.teacher.trained or ():
            names = self.splits.class_names
            try:
                member = models.read_trained(Path(os.path.expanduser(folder)), self.config.teacher.function)
                if member.classes == len(names):
                    models.check_trained(member, **self._shape)
            except ValueError as error:
                raise UserError(f"teacher.trained: {folder}: {error}") from None
            if member.classes != len(names):
                raise UserError(f"teacher.trained: {folder} knows {member.classes} classes, but the data have "
                                f"{len(names)}; train it on these data, or choose data.classes accordingly")
            if member.class_names and member.class_names != names:
                raise UserError(f"teacher.trained: the classes of {folder} are not those of the data in the same "
                                f"order: {member.class_names[:3]} … against {names[:3]} …")
            members.append(member)
        return members

    @cached_property
    def _logits_file(self) -> LogitsFile:
        try:
            return logits_file.read(Path(os.path.expanduser(self.config.teacher.logits)), self)
        except ValueError as error:
            raise UserError(f"teacher.logits = {self.config.teacher.logits!r}: {error}") from None

    @property
    def image_size(self) -> int:
        return self.config.data.image_size or self.splits.image_size

    def _check_once(self) -> None:
        if not self._checked:
            self.check()
            if cluster_address(self.address) is None:
                preflight.check_here(self)
            for section, settings in trained_models(self.config).items():
                if settings.pretrained and not (section == "teacher" and self.stage("teacher").done):
                    self.display.update("fetching pretrained weights")
                    self.initial_weights(section)
            self._checked = True

    def check(self, machine: bool = True) -> None:
        """Find what cannot work before anything starts; `machine`: on this machine too. Raises UserError."""
        if machine and cluster_address(self.address) is None:
            local_share(self.config.resources)
        watch.check(self.config)
        self._check_models()
        for arm in self.warm_started:
            if arm in self._wanted:
                self.prior_trials(arm)

    def _check_models(self) -> None:
        check_models(self.config, **self._shape)
        _ = self._logits_file if self.config.teacher.logits else self.given_members

    @property
    def warm_started(self) -> list[str]:
        """The searches that start from another study's."""
        return [arm for arm in SEARCHES if self.config.search.warm_start and self.config.space(arm)]

    def prior_trials(self, arm: str) -> int:
        """How many trials of another study a search starts from, or has started from. Raises UserError."""
        with contextlib.suppress(MissingTeacherError):
            if prior := Record(self.stage(arm).record_path, write=False).prior:
                return len(prior)
        return len(warm_start.read_prior(self.config, arm, self.folder))

    # -- folders ------------------------------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        return Stage(name, self.folder / f"{name}-{self._fingerprint(name)}", self.home)

    def _fingerprint(self, name: str) -> str:
        return fingerprint(name, *getattr(self, f"_{name}_inputs")())

    def _shared_inputs(self) -> list[Any]:
        """What decides how a student is trained, whatever the arm."""
        config, images = self.config, self.image_hashes
        return [config.seed, model_inputs("student", config.student), changed(config.train), self._view_inputs(),
                images["student_train"], images["validation"], self.image_size]

    def _view_inputs(self, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
        return changed(self.config.views, exclude=("cache_gib", *exclude))

    def _teacher_inputs(self) -> list[Any]:
        config, images = self.config, self.image_hashes
        teacher = config.teacher
        if teacher.logits:
            return ["logits", hash_input(_existing(teacher.logits, "teacher.logits"))]
        if teacher.trained:
            files = [file for folder in teacher.trained
                     for file in sorted(_existing(folder, "teacher.trained", folder=True).glob("*")) if file.is_file()]
            digests = [hash_input(file) for file in files if file.suffix in (".json", ".safetensors", ".bin")]
            return ["trained", digests, images["validation"], self.image_size, teacher.precision]
        return [config.seed, model_inputs("teacher", teacher.model_settings), changed(teacher.train_settings),
                teacher.lr, self._view_inputs(exclude=("count",)), images["train"], images["validation"],
                self.image_size]

    def _search_inputs(self, arm: str) -> list[Any]:
        config = self.config
        space = {name: dimension.model_dump() for name, dimension in config.space(arm).items()}
        inputs = [*self._shared_inputs(), space, config.default_parameters(arm), config.protected(arm), config.rungs,
                  config.search.reduction_factor, config.report_every]
        return [*inputs, {"warm_start": config.search.warm_start}] if config.search.warm_start else inputs

    def _baseline_inputs(self) -> list[Any]:
        return self._search_inputs("baseline")

    def _teacher_logits_inputs(self) -> list[Any]:
        config = self.config
        return [self._teacher_weights_hash, self._teacher_done["members"], self.image_hashes, self.image_size,
                self._view_inputs(), config.train.epochs, config.teacher.precision]

    def _distill_inputs(self) -> list[Any]:
        return [*self._search_inputs("distill"), *self._answer_inputs()]

    def _answer_inputs(self) -> list[Any]:
        """What the soft loss is made of."""
        config, inputs = self.config, [self._teacher_weights_hash]
        if config.teacher.precision != "auto":
            inputs.append(config.teacher.precision)
        if config.data.unlabelled:
            inputs += [self.image_hashes["unlabelled"], config.data.unlabelled]
        return inputs

    def _finalists_baseline_inputs(self) -> list[Any]:
        return self._shared_inputs()

    def _finalists_inputs(self) -> list[Any]:
        return [*self._shared_inputs(), *self._answer_inputs()]

    def _confirm_baseline_inputs(self) -> list[Any]:
        return [*self._shared_inputs(), self.image_hashes["test"]]

    def _confirm_inputs(self) -> list[Any]:
        return [*self._confirm_baseline_inputs(), *self._answer_inputs()]

    @property
    def _teacher_done(self) -> dict[str, Any]:
        """What the teacher's done-mark says. Raises MissingTeacherError where it is not there yet."""
        done = self.stage("teacher").done
        if done is None:
            raise MissingTeacherError
        return done

    @property
    def _teacher_weights_hash(self) -> str:
        return self._teacher_done["weights"]

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, until: str = STAGE_NAMES[-1]) -> None:
        """Do every stage up to `until` that is not done. Raises UserError, StudyFailedError, InterruptedStudyError."""
        if self.home.uri is None:
            preflight.check_place(self.home)
        with (self.home.driven(), self._ray, storage.full_disk_noticed(self.folder),
              watch.watched(self.config, self.home, self._note)):
            storage.remove_drafts(self.folder)
            self._wanted = [name for name in STAGE_NAMES[: STAGE_NAMES.index(until) + 1] if name in self.config.stages]
            self._write_description()
            self._run_trials([name for name in self._wanted if name not in OUTPUTS])
            self.home.forget_tune()
            for name in OUTPUTS:
                if name in self._wanted:
                    getattr(self, f"_run_{name}")()

    def _note(self, text: str) -> None:
        self.display.console.print(f"note: {text}", soft_wrap=True, markup=False)

    def _run_trials(self, names: list[str]) -> None:
        """Do the stages that are not done, each as soon as it can begin."""
        from study.pipeline import Pipeline

        self._began, pipeline = False, Pipeline(self, names)
        try:
            pipeline.advance()
            if not pipeline.is_ended():
                from study.tuner import run_trials

                run_trials(pipeline, self.home, self._connect(), self.config.resources.worker_retries,
                           slots=self._slots)
        finally:
            self.display.stop()
        if pipeline.failures:
            raise pipeline.failures[0]

    def prepared(self, name: str) -> Stage:
        """A stage whose needs are done, taken over from a neighbour where there is one that did the same."""
        if name in finalists.STAGES or name in CONFIRMATIONS:
            self._keep_findings()
        stage = self.stage(name)
        self._take_over(stage)
        self._enlist(stage)
        return stage

    def make_ready(self, stage: Stage) -> None:
        """What comes before a stage's own work."""
        self.did_work = True
        if not self._began:
            self._began = True
            self.display.begin(stage.name, text="starting")
        self._check_once()
        stage.path.mkdir(parents=True, exist_ok=True)

    def is_given(self, stage: Stage) -> bool:
        """Whether there is nothing to run for it: others have, elsewhere."""
        teacher = self.config.teacher
        return {"teacher": teacher.is_given, "teacher_logits": bool(teacher.logits)}.get(stage.name, False)

    def take_given(self, stage: Stage) -> None:
        """Do a stage from what is given. Raises Ray's errors."""
        if stage.name == "teacher":
            self._evaluate_teacher(stage)
        else:
            self._unpack_logits(stage)

    def is_parallel(self, stage: Stage) -> bool:
        """Whether its trials are run by several workers each, so that they are no business of Tune's."""
        return stage.name == "teacher" and self.config.resources.teacher_workers > 1

    def run_parallel(self, job: Job) -> None:
        from study.parallel import run_parallel

        resources = self.config.resources
        run_parallel(job, self.home, self._connect(), resources.teacher_workers, resources.worker_retries)

    def close(self, stage: Stage) -> None:
        """Put together what a stage's trials have found. Raises StudyFailedError where that does not do."""
        getattr(self, f"_close_{stage.name}")(stage, stage.record())

    def is_current(self, stage: Stage) -> bool:
        """Done, and with as many trials, seeds and views as are wanted now."""
        done = stage.done
        if done is None:
            return False
        if stage.name in SEARCHES:
            return done["trials"] >= self.config.trials(stage.name)
        if stage.name == "teacher_logits":
            kept = all(_is_whole(stage.path / f"views-{seed}.npy") for seed in self.view_seeds)
            # A packed study has none; they are wanted only where there is still something to distil.
            if kept or (set(done["view_seeds"]) >= set(self.view_seeds) and self._distillation_done()):
                return True
            return not self.config.teacher.logits and not self.logits_fit
        if stage.name in finalists.STAGES or stage.name in CONFIRMATIONS:
            arm = finalists.STAGES.get(stage.name) or CONFIRMATIONS[stage.name]
            if not self.is_current(self.stage(arm)) or (stage.name in CONFIRMATIONS and self._choice(arm) is None):
                return False  # the search has changed, so its winner may too
            record = Record(stage.record_path, write=False)
            return ListProposer(self._listed_runs(stage.name)).total(record) <= done["runs"] \
                and done["rows"] == self._rows(stage.name, record)
        return True

    def _distillation_done(self) -> bool:
        return all(self.is_current(self.stage(name)) for name in ("distill", "finalists", "confirm")
                   if name in self.config.stages)

    def _take_over(self, stage: Stage) -> None:
        """Copy the stage from a study beside this one that has done the same."""
        if stage.path.exists() and any(stage.path.iterdir()):
            return
        for path in self.home.neighbours(stage.path.name):
            done = Stage(stage.name, path, self.home).done
            # A search with another budget would make the arms unequal.
            if done is None or (stage.name in SEARCHES and done["trials"] != self.config.trials(stage.name)):
                continue
            if stage.name in self.warm_started and not self._starts_alike(stage.name, path):
                continue
            storage.copy_stage(path, stage.path)
            stage.finish(done | {"taken_from": path.parent.name})
            self.did_work = True
            return

    def _starts_alike(self, arm: str, neighbour: Path) -> bool:
        """Whether a neighbour's search began with what this one would; one that is gone since cannot be asked."""
        prior = Record(neighbour / "record.jsonl", write=False).prior
        with contextlib.suppress(UserError):
            now = warm_start.read_prior(self.config, arm, self.folder)
            return [trial.parameters for trial in prior] == [known["parameters"] for known in now]
        return True

    def _connect(self) -> Share:
        """Ray, started when the first stage needs it."""
        if self._share is None:
            self.display.update("connecting to Ray")
            self._share = self._ray.enter_context(self.connected())
            self._slots = Slots(self._share.concurrent) if cluster_address(self.address) is None else ClusterSlots(
                self._share, self.config.resources, partial(preflight.problems_of, self, self._share), self._note)
            self._description["machine"] = describe_machine()
            self._save_description()
        return self._share

    @contextlib.contextmanager
    def connected(self) -> Iterator[Share]:
        """Ray, and what it has for trials. A cluster that others have started is looked at first: see `preflight`."""
        with connected(self.address) as ours:
            given = cluster_share(self.config.resources) if ours else preflight.check_cluster(self)
            if not ours and (note := waiting_note(given)):
                self.display.console.print(note, soft_wrap=True, markup=False)
            yield given

    def _write_description(self) -> None:
        splits, settings = self.splits, self.config.to_toml()
        if not storage.has_text(self.folder / STUDY_FILE, settings):
            self._check_models()  # settings that cannot work do not take the place of those that do
            self._note_changes(settings)
            storage.write_text(self.folder / STUDY_FILE, settings)
            self.home.publish(self.folder / STUDY_FILE)
        counts = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
        counts["unlabelled"] = len(splits.unlabelled) if splits.unlabelled else 0
        earlier = storage.read_json(self.folder / "stages.json")
        self._description = {
            "name": self.config.name,
            "data": {**counts, "classes": list(splits.class_names), "channels": splits.channels,
                     "image_size": self.image_size, "duplicates": splits.duplicates, "dropped": splits.dropped},
            "epochs": self.config.train.epochs,
            "rungs": self.config.rungs,
            "stages": self._existing_stages(),
            "machine": earlier.get("machine") if isinstance(earlier, dict) else None,
        }
        self._save_description()

    def _note_changes(self, settings: str) -> None:
        """Say which settings are not what the study was begun with: somebody may have forgotten a --set."""
        try:
            earlier = flat(tomllib.loads((self.folder / STUDY_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return
        now = flat(tomllib.loads(settings))
        changes = [f"{name} = {now.get(name, 'its default')} instead of {earlier.get(name, 'its default')}"
                   for name in dict.fromkeys([*now, *earlier]) if now.get(name) != earlier.get(name)]
        if changes:
            more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
            self._note(f"{self.home} was run with other settings before; now {', '.join(changes[:5])}{more}. "
                       f"`kdstudy run {self.home}` alone goes on with what a study has")

    def _save_description(self) -> None:
        storage.write_json(self.folder / "stages.json", self._description)
        self.home.publish(self.folder / "stages.json")

    def _existing_stages(self) -> dict[str, str]:
        """The stages that have begun with the settings as they are now; older ones do not belong to this study."""
        names = [name for name in self.config.stages if name not in OUTPUTS]
        stages = {}
        for name in names:
            try:
                path = self.stage(name).path
            except MissingTeacherError:
                continue
            if path.is_dir():
                stages[name] = path.name
        return stages

    def _enlist(self, stage: Stage) -> None:
        """Tell readers of the study which folder serves a stage now."""
        if self._description["stages"].get(stage.name) != stage.path.name:
            self._description["stages"][stage.name] = stage.path.name
            self._save_description()

    def show(self, stage: Stage, reused: bool = False) -> None:
        """Leave a line about a stage that is done."""
        done = stage.done
        outcome = done["outcome"] + (f" (taken from {done['taken_from']})" if reused and "taken_from" in done else "")
        if mismatches := Record(stage.record_path, write=False).mismatches:
            outcome += f" · {mismatches} repeated reports came out differently"
        if not reused and "utilisation" in done:
            outcome += f" · {100 * done['utilisation']:.0f} % of {done['slots']:.3g} slots in use"
        self.display.end(stage.name, outcome, done["seconds"], reused)

    # -- stages -------------------------------------------------------------------------------------------------------

    def begin_session(self, book: TrialBook) -> None:
        book.record.begin_session(epochs=book.epochs, rungs=book.rungs, wanted=book.total, protected=book.protected,
                                  share=str(replace(self._connect(), concurrent=self._slots.count())))

    def book(self, stage: Stage, on_change: Callable[[], None]) -> TrialBook:
        """What decides on a stage's trials, from where its record says that they are."""
        config, name = self.config, stage.name
        record = stage.record()
        self._connect()
        if name in self.warm_started and not record.prior:
            record.add_prior(config.search.warm_start, warm_start.read_prior(config, name, self.folder))
        runs = None if name in SEARCHES else self._listed_runs(name)
        proposer: Proposer = (OptunaProposer.of(config, name, self._slots.count()) if runs is None
                              else ListProposer(runs))
        if runs is not None:
            # A search can do without a failed trial; these runs are all needed, so a new start tries them again.
            wanted = {run_key(run) for run in runs}
            for trial in list(record.trials.values()):
                if trial.state == "failed" and run_key(trial) in wanted:
                    record.retry(trial.number)
        return TrialBook(
            record, proposer, on_change=on_change,
            epochs={"teacher": config.teacher.epochs, "teacher_logits": 1}.get(name, config.train.epochs),
            rungs=config.rungs if runs is None else [], reduction_factor=config.search.reduction_factor,
            has_results=self._result_check(stage) if name in ("teacher", "teacher_logits", *CONFIRMATIONS) else None,
            scored=name != "teacher_logits",
        )

    def _result_check(self, stage: Stage) -> Callable[[TrialState], bool]:
        """Whether what counts of a run is where its record says: a teacher's weights, a confirmation's test answers.

        Of a confirmation only the run that is exported needs its weights: a packed study has no others.
        """
        exported = run_key(self._exported_run()) if stage.name == "confirm" else None

        def has_results(trial: TrialState) -> bool:
            if stage.name == "teacher_logits":
                return self._has_answers(stage, trial)
            if stage.name == "teacher" and (stage.path / "model.safetensors").exists():
                return True  # already chosen; the others have been removed
            needed = ["test.parquet"] if stage.name in CONFIRMATIONS else []
            if not needed or run_key(trial) == exported:
                needed.append("model.safetensors")
            return all((self.folder / trial.checkpoint["path"] / name).exists() for name in needed)

        return has_results

    def _has_answers(self, stage: Stage, piece: TrialState) -> bool:
        """Whether a piece of the teacher's answers is there, or what has been put together of it."""
        if piece.parameters["view_count"]:
            whole, part = stage.path / f"views-{piece.view_seed}.npy", VIEWS
            return _is_whole(whole) or _is_whole(self.folder / piece.checkpoint["path"] / part)
        return any((folder / TEST_ANSWERS).exists() for folder in (stage.path, self.folder / piece.checkpoint["path"]))

    def _listed_runs(self, stage: str) -> tuple[TrialState, ...]:
        """What a stage runs that is not a search."""
        if stage == "teacher":
            return self._teacher_runs()
        if stage == "teacher_logits":
            return self._logits_runs()
        if stage in CONFIRMATIONS:
            return self._confirm_runs(stage)
        runs = self._finalist_runs(stage).values()
        return tuple(run for of_one_seed in zip(*runs, strict=True) for run in of_one_seed)

    def _rows(self, stage: str, record: Record) -> list[dict[str, Any]]:
        if stage in CONFIRMATIONS:
            return self._confirm_rows(stage, record)
        return finalists.rows(record, self._finalist_runs(stage))

    def _teacher_runs(self) -> tuple[TrialState, ...]:
        """One per learning rate, otherwise alike."""
        seed = small_seed(self.config.seed, "teacher")
        return tuple(TrialState(0, {"lr": lr}, seed, seed, "teacher") for lr in self.config.teacher.learning_rates)

    def _close_teacher(self, stage: Stage, record: Record) -> None:
        best = self._winner_or_fail(stage, record)
        weights = stage.path / "model.safetensors"
        if not weights.exists():
            storage.copy_file(self.folder / best.checkpoint["path"] / weights.name, weights)
        shutil.rmtree(stage.path / "runs", ignore_errors=True)
        parameters, tried = _parameter_count(storage.read_weights(weights)), len(self.config.teacher.learning_rates)
        member = {"model": self.config.teacher.model_settings.model_copy(update={"pretrained": False}).model_dump(),
                  "weights": weights.name, "normalised": None}
        stage.finish({
            "model": self.config.teacher.title, **self._family("teacher"), "members": [member],
            "outcome": f"{self.config.teacher.model} · {100 * best.metric(METRIC):.1f} % validation · "
                       f"{parameters:,} parameters" + (f", best of {tried} learning rates" if tried > 1 else ""),
            "seconds": record.seconds, "trial": best.number, "parameters": best.parameters,
            "model_parameters": parameters, "best_validation": best.metric(METRIC), "trials": tried,
            "weights": hash_file(weights),
        })

    def _family(self, section: str) -> dict[str, str]:
        """What kind of model a section's is, and of which class."""
        from trainables import models

        kind, family = models.kind_of(trained_models(self.config)[section], **self._shape)
        return {"kind": kind, "family": family}

    def _evaluate_teacher(self, stage: Stage) -> None:
        """A teacher that is given: keep its weights with the study, and see how good it is on the validation images."""
        import ray

        started = time.monotonic()
        if self.config.teacher.logits:
            self._finish_given(stage, self._logits_file.accuracy, started, {
                "weights": self._teacher_inputs()[1], "members": [], "model_parameters": None,
                "kind": None, "family": None})
            return
        from trainables import models
        from trainables.task import Teacher

        share = self._connect()
        members, digests, parameters = [], [], 0
        for index, member in enumerate(self.given_members):
            path = stage.path / f"member-{index}.safetensors"
            save_file(member.weights, path)
            members.append({"model": member.model.model_dump(), "weights": path.name,
                            "normalised": [list(member.mean), list(member.std)]})
            digests.append(hash_file(path))
            parameters += _parameter_count(member.weights)
        task = replace(self._plain_task(), teacher=Teacher(self._members(stage.path, members)))
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        accuracy = ray.get(ray.remote(**options)(_measure_teacher).remote(task))
        kinds = {models.kind_of(member.model, **self._shape) for member in self.given_members}
        kind, family = kinds.pop() if len(kinds) == 1 else ("ensemble", "ensemble")
        self._finish_given(stage, accuracy, started, {
            # How the weights are used counts as much as what they are: image size, mean and std.
            "weights": fingerprint(digests, [{**member, "weights": None} for member in members]),
            "members": members, "model_parameters": parameters, "kind": kind, "family": family})

    def _finish_given(self, stage: Stage, accuracy: float, started: float, facts: dict[str, Any]) -> None:
        title, count = self.config.teacher.title, len(facts["members"])
        stage.finish({
            "model": title, **facts, "outcome": f"{title} · given · {100 * accuracy:.1f} % validation"
            + (f" · mean logits of {count} models" if count > 1 else ""),
            "seconds": time.monotonic() - started, "parameters": {}, "best_validation": accuracy, "trials": 0,
        })

    def _close_baseline(self, stage: Stage, record: Record) -> None:
        self._close_search(stage, record)

    def _close_distill(self, stage: Stage, record: Record) -> None:
        self._close_search(stage, record)

    def _close_search(self, stage: Stage, record: Record) -> None:
        best = self._winner_or_fail(stage, record)
        write_optuna_file(self.config.space(stage.name), record, stage.path / "optuna.db",
                          f"{self.config.name}-{stage.name}")
        trials = list(record.trials.values())
        states = {state: sum(trial.state == state for trial in trials) for state in ("complete", "stopped", "failed")}
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        started = f" · started from {len(record.prior)} trials of {record.prior_study}" if record.prior else ""
        stage.finish({
            **self._family("student"),
            "outcome": f"{len(trials)} trials ({counts}) · best {100 * best.metric(METRIC):.1f} % validation at "
                       f"{show_parameters(best.parameters)}{started}",
            "seconds": record.seconds, "trials": len(trials), **states, "winner": best.number,
            "parameters": best.parameters, "best_validation": best.metric(METRIC),
            "default_validation": record.trials[0].metric(METRIC) if record.trials[0].state == "complete" else None,
        })

    def _close_finalists_baseline(self, stage: Stage, record: Record) -> None:
        self._close_finalists(stage, record)

    def _close_finalists(self, stage: Stage, record: Record) -> None:
        rows = self._rows(stage.name, record)
        best = finalists.winner(rows)
        if best is None:
            raise StudyFailedError(f"{stage.name}: every configuration failed on fresh seeds; run the same command "
                                   "again to try again, or set finalists.configurations = 0 to do without")
        search = self.stage(finalists.STAGES[stage.name]).done
        seeds = self.config.finalists.seeds
        kept = "the search's winner" if best["trial"] == search["winner"] else (
            "the default point" if best["trial"] == 0 else f"trial {best['trial']}")
        stage.finish({
            **_taken(stage, record),
            "outcome": f"{len(rows)} configurations on {seeds} fresh seed{'s' if seeds > 1 else ''} · {kept} is best, "
                       f"{100 * finalists.mean(best):.1f} % validation at {show_parameters(best['parameters'])}",
            "seconds": record.seconds, "runs": len(record.trials), "rows": rows, "winner": best["trial"],
            "parameters": best["parameters"], "best_validation": finalists.mean(best),
        })

    def _close_confirm_baseline(self, stage: Stage, record: Record) -> None:
        self._close_confirm(stage, record)

    def _close_confirm(self, stage: Stage, record: Record) -> None:
        wanted = {run_key(run) for run in self._confirm_runs(stage.name)}
        for trial in record.trials.values():
            if trial.state == "failed" and run_key(trial) in wanted:
                raise StudyFailedError(f"confirmation run {trial.number} ({trial.label}) failed: {trial.reason}; run "
                                       "the same command again to try it again")
        rows = self._confirm_rows(stage.name, record)
        earlier = storage.read_json(stage.path / "done.json") or {}
        weights = next(stage.path.glob("runs/*/model.safetensors"), None)  # a packed baseline has none
        stage.finish({
            **_taken(stage, record),
            "outcome": f"{len(wanted)} runs on {self.config.confirm.seeds} fresh paired seeds",
            "seconds": record.seconds, "runs": len(record.trials), "seeds": self._confirm_seeds(), "rows": rows,
            "model_parameters": _parameter_count(storage.read_weights(weights)) if weights
            else earlier["model_parameters"],
        })

    def _logits_runs(self) -> tuple[TrialState, ...]:
        """The pieces of the teacher's answers that are not there yet: once the held-out images, then the views, those
        of the search first."""
        folder, runs = self.stage("teacher_logits").path, []
        if not (folder / "test.parquet").exists():
            runs.append(TrialState(0, {"first_view": 0, "view_count": 0}, 0, 0, "teacher_logits", True,
                                   "held-out images"))
        for view_seed in self.view_seeds if self.logits_fit else ():
            if not _is_whole(folder / f"views-{view_seed}.npy"):
                runs += self._pieces(view_seed)
        return tuple(runs)

    def _pieces(self, view_seed: int) -> list[TrialState]:
        """The runs that answer for one view seed's views, in their order."""
        parts = [views for views in np.array_split(range(self.config.view_count), PIECES) if len(views)]
        return [TrialState(0, {"first_view": int(views[0]), "view_count": len(views)}, 0, view_seed, "teacher_logits",
                           True, f"views {views[0]} to {views[-1]} of view seed {view_seed}") for views in parts]

    def _close_teacher_logits(self, stage: Stage, record: Record) -> None:
        """Put the pieces together."""
        runs = record.trials.values()
        if failed := [run for run in runs if run.state == "failed"]:
            raise StudyFailedError(f"teacher_logits: {failed[0].label} failed: {failed[0].reason}; run the same "
                                   "command again to try again")
        folders = {run_key(run): self.folder / run.checkpoint["path"] for run in runs}
        for run in runs:
            if not run.parameters["view_count"] and folders[run_key(run)].exists():
                for name in (VALIDATION, TEST_ANSWERS):
                    storage.copy_file(folders[run_key(run)] / name, stage.path / name)
        for view_seed in self.view_seeds if self.logits_fit else ():
            if not _is_whole(stage.path / f"views-{view_seed}.npy"):
                pieces = [folders[run_key(piece)] for piece in self._pieces(view_seed)]
                self._save_views(stage, view_seed, *self._joined(pieces))
                for folder in pieces:  # at once: together they are as large as the whole
                    shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(stage.path / "runs", ignore_errors=True)
        self._finish_logits(stage, self.logits_fit, record.seconds)

    def _joined(self, folders: list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
        """The answers for all views from those of each piece; also for the images without labels."""
        names = (VIEWS, UNLABELLED) if self.splits.unlabelled else (VIEWS,)
        labelled, *unlabelled = (np.concatenate([storage.read_array(folder / name) for folder in folders])
                                 for name in names)
        return labelled, unlabelled[0] if unlabelled else None

    def _finish_logits(self, stage: Stage, fits: bool, seconds: float) -> None:
        count, images = self.config.view_count, self.splits.seen_by_student
        size = show_bytes(self.logits_bytes)
        budget = f"{self.config.views.cache_gib:g} GiB of views.cache_gib"
        stage.finish({
            "outcome": f"{count} views × {images} images × {len(self.view_seeds)} view seeds, {size} in fp16" if fits
                       else f"would need {size}, more than the {budget}: the teacher runs in the loop instead",
            "seconds": seconds, "cached": fits, "view_seeds": self.view_seeds if fits else [],
        })

    def _save_views(self, stage: Stage, view_seed: int, logits: np.ndarray, unlabelled: np.ndarray | None) -> None:
        files = {f"unlabelled-{view_seed}.npy": unlabelled, f"views-{view_seed}.npy": logits}
        for name, array in files.items():  # the views last: they say that both are there
            if array is not None:
                _save_array(stage.path / name, array)
                self.home.publish(stage.path / name)

    def _unpack_logits(self, stage: Stage) -> None:
        """Another's answers, from a file, to where the study's own would be."""
        import tempfile

        import torch

        from trainables.task import write_answers

        started, given = time.monotonic(), self._logits_file
        for view_seed in self.view_seeds:
            self._save_views(stage, view_seed, *given.views(view_seed))
        _save_array(stage.path / "validation.npy", given.validation.astype(np.int64))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "test.parquet"
            write_answers(torch.from_numpy(given.test.astype(np.float32)), self.splits.test.labels, path)
            storage.write_bytes(stage.path / "test.parquet", path.read_bytes())
        self._finish_logits(stage, True, time.monotonic() - started)

    def _run_report(self) -> None:
        from analysis import report

        self._run_output("report", "results/report.html", lambda: report.build(self.folder))
        self.home.publish(self.folder / "results")

    def _run_export(self) -> None:
        from study import export

        target = self.folder / "export"

        def write() -> bool:
            if StudyFiles(self.folder).has_current_export:
                return False
            export.export_student(self.config, self.folder, target)
            return True

        self._run_output("export", "export", write)
        self.home.publish(target)

    def _run_output(self, name: str, path: str, write: Callable[[], bool]) -> None:
        """Bring something that others read up to date; `write` says whether there was anything to do."""
        started = time.monotonic()
        self.display.begin(name, text="writing")
        try:
            changed = write()
        finally:
            self.display.stop()
        self.did_work |= changed
        self.display.end(name, f"{self.home}/{path}", time.monotonic() - started, reused=not changed)

    # -- trials -------------------------------------------------------------------------------------------------------

    def _plain_task(self) -> Task:
        """What the student's runs share, whatever the stage."""
        from trainables.task import Task

        config, splits = self.config, self.splits
        return Task(train=splits.student_train, validation=splits.validation, classes=len(splits.class_names),
                    image_size=self.image_size, model=config.student, training=config.train, views=config.views,
                    report_every=config.report_every, checkpoint_every=config.checkpoint_every,
                    threads=config.resources.cpus_per_trial, unlabelled=splits.unlabelled,
                    unlabelled_ratio=config.data.unlabelled)

    def task(self, stage: str) -> Task:
        """What the runs of a stage share."""
        config, splits, task = self.config, self.splits, self._plain_task()
        if stage == "teacher":
            training = config.teacher.train_settings
            every = max(1, training.epochs // 20)
            # views.count limits the views whose logits are kept; the teacher itself sees a fresh one every epoch.
            views = config.views.model_copy(update={"count": None})
            return replace(task, train=splits.train, model=config.teacher.model_settings, training=training,
                           views=views, report_every=every, checkpoint_every=5 * every, keep_weights=True,
                           unlabelled=None, weights=self.initial_weights("teacher"))
        if stage == "teacher_logits":
            return replace(task, teacher=self.teacher(), test=splits.test, keep_weights=True)
        task = replace(task, weights=self.initial_weights("student"))
        if stage in CONFIRMATIONS:
            # Nobody stops a confirmation run, so it reports only when it is saved.
            task = replace(task, report_every=config.checkpoint_every, keep_weights=True, test=splits.test)
        if stage in finalists.STAGES:  # like a search, but nobody stops these runs
            task = replace(task, report_every=config.checkpoint_every)
        if "baseline" in stage:
            return replace(task, unlabelled=None)
        return replace(task, teacher=self.teacher(self._confirm_seeds() if stage in CONFIRMATIONS
                                                  else [search_view_seed(config.seed)]))

    def teacher(self, view_seeds: list[int] | None = None) -> Teacher:
        """The trained teacher, with its answers for the given view seeds where there are any."""
        from trainables.task import Teacher

        done = self._teacher_done
        if view_seeds is None:
            return Teacher(self._members(self.stage("teacher").path, done["members"]))
        folder = self.stage("teacher_logits").path

        def stored(kind: str) -> dict[int, np.ndarray]:
            paths = {seed: folder / f"{kind}-{seed}.npy" for seed in view_seeds}
            return {seed: storage.read_array(path) for seed, path in paths.items() if path.exists()}

        logits = stored("views")
        members = () if len(logits) == len(view_seeds) else self._members(self.stage("teacher").path, done["members"])
        return Teacher(members, storage.read_array(folder / "validation.npy"), logits, stored("unlabelled"))

    def _members(self, folder: Path, described: list[dict[str, Any]]) -> tuple[Member, ...]:
        """A teacher's models, as its done-mark describes them."""
        return tuple(self._member(folder, member) for member in described)

    def _member(self, folder: Path, described: dict[str, Any]) -> Member:
        from trainables import models
        from trainables.task import Member

        check_function(described["model"]["model"], self.config)
        settings, path = ModelSettings.model_validate(described["model"]), folder / described["weights"]
        weights = storage.read_weights(path)
        try:
            models.check(settings, **self._shape)
            models.check_weights(settings, weights, **self._shape)
            if described["normalised"]:
                models.check_normalisation(*described["normalised"], self.splits.channels)
        except ValueError as error:
            raise StudyFailedError(f"{path}: {error}; restore it from a copy") from None
        return Member(settings, self.config.teacher.train_settings, weights,
                      tuple(map(tuple, described["normalised"])) if described["normalised"] else None)

    def _winner_or_fail(self, stage: Stage, record: Record) -> TrialState:
        best = winner(record)
        if best is None:
            failed = [trial for trial in record.trials.values() if trial.state == "failed"]
            reason = f": {len(failed)} failed, the first with {failed[0].reason}" if failed else ""
            again = "run the same command again to try again" if stage.name == "teacher" else (
                f"change the settings, or remove {self.home}/{stage.path.name} to search again")
            raise StudyFailedError(f"{stage.name}: no trial reached its last epoch{reason}; {again}")
        return best

    # -- teacher logits -----------------------------------------------------------------------------------------------

    @property
    def view_seeds(self) -> list[int]:
        """One for the search, one for every confirmation seed."""
        return [search_view_seed(self.config.seed), *self._confirm_seeds()]

    @property
    def augments(self) -> bool:
        """Whether views differ from the plain images."""
        views = self.config.views
        return bool(views.shift or views.flip or views.scale or views.mixup)

    @property
    def logits_bytes(self) -> int:
        """Of the teacher's answers for all views, once they are kept."""
        splits = self.splits
        return 2 * len(self.view_seeds) * self.config.view_count * splits.seen_by_student * len(splits.class_names)

    @property
    def logits_fit(self) -> bool:
        return self.logits_bytes <= self.config.views.cache_gib * 2**30

    # -- finalists ----------------------------------------------------------------------------------------------------

    def _findings(self, arm: str) -> dict[str, Any]:
        """What the sensitivity analysis says of a finished search: the ranking of its full-budget trials, and for the
        distillation the best values of what both arms search, the rest at its defaults (None if nothing can be said).
        """
        done = self.stage(arm).done
        if "ranking" in done:
            return done
        if arm not in self._found:
            from analysis import sensitivity

            ranking, best = sensitivity.choices(StudyFiles(self.folder), arm)
            best = best if self.config.shared_parameters else None
            self._found[arm] = {"ranking": ranking,
                                "only_shared": best and {name: self._rounded(name, best[name])
                                                         for name in self.config.shared_parameters}}
        return self._found[arm]

    def _rounded(self, name: str, value: Any) -> Any:
        """Three significant digits, within the range: what the table shows is what runs."""
        dimension = getattr(self.config.search, name)
        if dimension.choice is not None:
            return value
        low, high = dimension.bounds
        return min(max(float(f"{value:.3g}"), low), high)

    def _keep_findings(self) -> None:
        """Write them to the done-marks: on another machine, or with more trials of the other arm, they might differ."""
        for arm in SEARCHES:
            stage = self.stage(arm)
            if stage.done and "ranking" not in stage.done:
                stage.finish(stage.done | self._findings(arm))

    def _choice(self, arm: str) -> dict[str, Any] | None:
        """The done-mark that names an arm's winner: the finalists' where there are such, else the search's."""
        if not self.is_current(self.stage(arm)):
            return None
        if not self.config.finalists.configurations:
            return self.stage(arm).done
        stage = self.stage(next(name for name, search in finalists.STAGES.items() if search == arm))
        return stage.done if self.is_current(stage) else None

    def _finalist_runs(self, stage: str) -> dict[int, list[TrialState]]:
        """Per candidate, the number of its trial in the search, its runs.

        Weights and order are fresh; the views are the search's, whose teacher's answers are there already.
        """
        config, arm = self.config, finalists.STAGES[stage]
        trials = Record(self.stage(arm).record_path, write=False).trials
        ranking = finalists.distinct(self._findings(arm)["ranking"], trials)
        chosen = finalists.candidates(ranking, config.finalists.configurations)
        seeds = [small_seed(config.seed, "finalists", index) for index in range(config.finalists.seeds)]
        return {number: [TrialState(0, trials[number].parameters, seed, search_view_seed(config.seed), "finalist", True,
                                    f"trial {number}") for seed in seeds] for number in chosen}

    # -- confirmation -------------------------------------------------------------------------------------------------

    def _confirm_seeds(self) -> list[int]:
        return [small_seed(self.config.seed, "confirm", index) for index in range(self.config.confirm.seeds)]

    def _confirm_arms(self, stage: str) -> list[Arm]:
        """A confirmation's rows of the table: its arm at the default point, tuned, and, so that nobody takes the worth
        of a learning rate for that of distillation, the distillation with only that tuned."""
        arm = CONFIRMATIONS[stage]
        name, best = "baseline" if arm == "baseline" else "distilled", self._choice(arm)
        default = self.config.default_parameters(arm)
        shared = self._findings(arm)["only_shared"]
        only = [Arm(name, ONLY.format(" and ".join(shared)), default | shared, None)] if shared else []
        return [Arm(name, "default", default, 0), *only, Arm(name, "tuned", best["parameters"], best["winner"])]

    def _confirm_runs(self, stage: str) -> tuple[TrialState, ...]:
        """All runs, seed by seed, so that pairs are complete as early as can be."""
        arms = self._confirm_arms(stage)
        return tuple(self._confirm_run(arm, seed) for seed in self._confirm_seeds() for arm in arms)

    def _exported_run(self) -> TrialState:
        """The best student: the tuned distillation on the first seed."""
        return self._confirm_run(self._confirm_arms("confirm")[-1], self._confirm_seeds()[0])

    def _confirm_run(self, arm: Arm, seed: int) -> TrialState:
        return TrialState(0, arm.parameters, seed, seed, "confirm", True, f"{arm.arm} {arm.configuration}")

    def _confirm_rows(self, stage: str, record: Record) -> list[dict[str, Any]]:
        """Per row of the table: what ran, and the numbers of its runs, one per seed."""
        numbers = {run_key(trial): trial.number for trial in record.trials.values()}
        rows = []
        for arm in self._confirm_arms(stage):
            runs = [numbers.get(run_key(self._confirm_run(arm, seed))) for seed in self._confirm_seeds()]
            rows.append({"arm": arm.arm, "configuration": arm.configuration, "parameters": arm.parameters,
                         "trial": arm.trial, "runs": runs})
        return rows


def _taken(stage: Stage, record: Record) -> dict[str, str]:
    """Where a stage was taken from, for its done-mark, if all that it has run was: it may only choose anew among it."""
    earlier = storage.read_json(stage.path / "done.json") or {}
    if "taken_from" in earlier and earlier["runs"] == len(record.trials):
        return {"taken_from": earlier["taken_from"]}
    return {}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A study file's settings by their full names."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def changed(settings: Settings, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that differ from their defaults: a new setting leaves the fingerprints of older studies alone."""
    return settings.model_dump(exclude_defaults=True, exclude=set(exclude))


def model_inputs(section: str, settings: ModelSettings) -> dict[str, Any]:
    """A model's settings for a fingerprint: a weights file counts by its content, wherever it lies."""
    inputs = changed(settings)
    if isinstance(settings.pretrained, str):
        inputs["pretrained"] = hash_input(_existing(settings.pretrained, f"{section}.pretrained"))
    if ":" in settings.model:  # a function: its name says little, so its file counts
        from trainables import models

        try:
            inputs["source"] = hash_input(models.source_file(settings.model))
        except ValueError as error:
            raise UserError(f"{section}.{error}") from None
    return inputs


def check_function(model: str, config: StudyConfig) -> None:
    """See whether a function that a file names as a model is one that the study's own settings name, for it will be
    called. Raises UserError."""
    if ":" in model and model not in (config.teacher.model, config.teacher.function):
        raise UserError(f"the teacher's model is the function {model}, which is called only where the study says so: "
                        f"set teacher.function = {model!r}")


def _existing(path: str, setting: str, folder: bool = False) -> Path:
    found = Path(os.path.expanduser(path))
    if not found.exists():
        raise UserError(f"{setting}: {path} does not exist")
    if found.is_dir() != folder:
        raise UserError(f"{setting}: {path} is {'a file, not a folder' if folder else 'a folder, not a file'}")
    return found


def describe_machine() -> str:
    """What the study runs on, for a reader of its times."""
    import ray

    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    parts = [f"{resources.get('CPU', 0):g} CPU cores ({platform.machine()})"]
    if count := resources.get("GPU", 0):
        parts.append(f"{count:g} GPUs" + (f" ({', '.join(sorted(gpus))})" if gpus else ""))
    return " and ".join(parts) + (f" on {nodes} nodes" if nodes > 1 else "")


def _measure_teacher(task: Task) -> float:
    """A Ray task: the teacher's accuracy on the validation images, 0 to 1."""
    import torch

    from trainables.loop import default_device, to_device
    from trainables.teacher_logits import held_out

    torch.set_num_threads(task.threads)
    device = default_device()
    images, labels = to_device(task.validation, device)
    logits = held_out(task.load_teacher(device), images, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def _save_array(path: Path, array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_bytes(path, buffer.getbuffer())


def _is_whole(path: Path) -> bool:
    """Whether an array's file is there and as long as its header says."""
    try:
        return isinstance(np.load(path, mmap_mode="r"), np.ndarray)
    except Exception:
        return False


def _parameter_count(weights: dict[str, np.ndarray]) -> int:
    """Trainable numbers among a model's weights: all but the running statistics of normalisation layers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(array.size for name, array in weights.items() if name.rsplit(".", 1)[-1] not in buffers)

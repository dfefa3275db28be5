"""The pipeline: teacher, baseline, teacher_logits, distill, confirm, report, export.

Every stage is a function of its own part of the settings and of its inputs. Its folder is named after the fingerprint
of both, and carries a done-mark that is written last. That is all there is to resume, reuse and reproducibility: what
is done is skipped, what was cut off goes on from its record, and a stage that another study beside this one has done
is taken over.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from analysis.results import StudyFiles
from study import storage
from study.cluster import Share, cluster_share, connected, local_share
from study.config import STUDY_FILE, StudyConfig, check_models
from study.display import Display
from study.errors import StudyFailedError, UserError
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
from trainables import data
from trainables.data import ImageSet, Splits
from trainables.seeds import small_seed

# Stages of one group need nothing of each other and run at the same time.
GROUPS = (("teacher", "baseline"), ("teacher_logits",), ("distill",), ("confirm",))
OUTPUTS = ("report", "export")
SEARCHES = ("baseline", "distill")
STAGES = (*(name for group in GROUPS for name in group), *OUTPUTS)
# Raised when the meaning of a stage's files changes, so that older folders are not taken for current ones.
FORMAT = 1


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


@dataclass
class Stage:
    """A stage's folder and what its done-mark says."""

    name: str
    path: Path

    @property
    def done(self) -> dict[str, Any] | None:
        """What the done-mark says; None where there is none or where any of the stage's files has gone."""
        done = storage.read_json(self.path / "done.json")
        if done is None or not all((self.path / name).exists() for name in done.get("files", [])):
            return None
        return done

    @property
    def record_path(self) -> Path:
        return self.path / "record.jsonl"

    def finish(self, outcome: dict[str, Any]) -> None:
        files = sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()
                       and path.name != "done.json" and not path.name.startswith("."))
        storage.write_json(self.path / "done.json", outcome | {"files": files})


@dataclass(frozen=True)
class Arm:
    """One row of the confirmation: a configuration of the baseline or of the distillation."""

    arm: str  # baseline, distilled
    configuration: str  # default, tuned
    parameters: dict[str, Any]
    trial: int  # its number in the search


class Study:
    """A study in a folder. `run` brings it to its end, or to the end of a stage, from wherever it is."""

    def __init__(self, config: StudyConfig, folder: Path, display: Display, address: str | None = None):
        self.config, self.folder, self.display, self.address = config, folder, display, address
        self._ray = contextlib.ExitStack()
        self._share: Share | None = None
        self.did_work = False
        self._checked = False

    # -- inputs -------------------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        try:
            return data.load(self.config.data)
        except ValueError as error:
            raise UserError(str(error)) from None

    @cached_property
    def _image_hashes(self) -> dict[str, str]:
        names = ("train", "student_train", "validation", "test")
        return {name: hash_images(getattr(self.splits, name)) for name in names}

    @property
    def image_size(self) -> int:
        return self.config.data.image_size or self.splits.image_size

    def _check_once(self) -> None:
        if not self._checked:
            self.check()
            self._checked = True

    def check(self) -> None:
        """Find what cannot work before anything starts. Raises UserError."""
        if not (self.address or os.environ.get("RAY_ADDRESS")):
            local_share(self.config.resources)
        check_models(self.config, classes=len(self.splits.class_names), channels=self.splits.channels,
                     image_size=self.image_size)

    # -- folders ------------------------------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        return Stage(name, self.folder / f"{name}-{self._fingerprint(name)}")

    def _fingerprint(self, name: str) -> str:
        return fingerprint(name, *getattr(self, f"_{name}_inputs")())

    def _shared_inputs(self) -> list[Any]:
        """What decides how a student is trained, whatever the arm."""
        config, images = self.config, self._image_hashes
        return [config.seed, config.student.model_dump(), config.train.model_dump(), config.views.model_dump(
            exclude={"cache_gib"}), images["student_train"], images["validation"], self.image_size]

    def _teacher_inputs(self) -> list[Any]:
        config, images = self.config, self._image_hashes
        return [config.seed, config.teacher.model_dump(), config.views.model_dump(exclude={"cache_gib", "count"}),
                images["train"], images["validation"], self.image_size]

    def _search_inputs(self, arm: str) -> list[Any]:
        config = self.config
        space = {name: dimension.model_dump() for name, dimension in config.space(arm).items()}
        return [*self._shared_inputs(), space, config.default_parameters(arm), config.protected(arm), config.rungs,
                config.search.reduction_factor, config.report_every]

    def _baseline_inputs(self) -> list[Any]:
        return self._search_inputs("baseline")

    def _teacher_logits_inputs(self) -> list[Any]:
        config, images = self.config, self._image_hashes
        return [self._teacher_weights_hash, config.teacher.model_settings.model_dump(), images, self.image_size,
                config.views.model_dump(exclude={"cache_gib"}), config.train.epochs, config.teacher.precision]

    def _distill_inputs(self) -> list[Any]:
        return [*self._search_inputs("distill"), self._teacher_weights_hash]

    def _confirm_inputs(self) -> list[Any]:
        return [*self._shared_inputs(), self._teacher_weights_hash, self._image_hashes["test"]]

    @property
    def _teacher_weights(self) -> Path:
        return self.stage("teacher").path / "model.safetensors"

    @property
    def _teacher_weights_hash(self) -> str:
        return self.stage("teacher").done["weights"]

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, until: str = STAGES[-1]) -> None:
        """Do every stage up to `until` that is not done. Raises UserError, StudyFailedError, InterruptedStudyError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with storage.StudyLock(self.folder), self._ray:
            self._write_description()
            wanted = STAGES[: STAGES.index(until) + 1]
            for group in GROUPS:
                self._run_group([name for name in group if name in wanted])
            for name in OUTPUTS:
                if name in wanted:
                    getattr(self, f"_run_{name}")()

    def _run_group(self, names: list[str]) -> None:
        """Do the stages of a group that are not done, at the same time."""
        missing = []
        for stage in map(self.stage, names):
            self._take_over(stage)
            self._enlist(stage)
            if self.is_current(stage):
                self._show(stage, reused=True)
            else:
                missing.append(stage)
        if not missing:
            return
        self._check_once()
        self.did_work = True
        self.display.begin(*[stage.name for stage in missing], text="starting")
        try:
            for stage in missing:
                stage.path.mkdir(parents=True, exist_ok=True)
            if missing[0].name == "teacher_logits":
                self._run_teacher_logits(missing[0])
            else:
                self._run_trials(missing)
        finally:
            self.display.stop()
        for stage in missing:
            self._show(stage)

    def is_current(self, stage: Stage) -> bool:
        """Done, and with as many trials, seeds and views as are wanted now."""
        done = stage.done
        if done is None:
            return False
        if stage.name in SEARCHES:
            return done["trials"] >= self.config.trials(stage.name)
        if stage.name == "teacher_logits":
            return set(done["view_seeds"]) >= set(self._view_seeds()) or not self._logits_fit()
        if stage.name == "confirm":
            return not ListProposer(self._confirm_runs()).total(Record(stage.record_path, write=False)) > done["runs"] \
                and done["rows"] == self._confirm_rows(Record(stage.record_path, write=False))
        return True

    def _take_over(self, stage: Stage) -> None:
        """Copy the stage from a study beside this one that has done the same."""
        if stage.path.exists():
            return
        for path in sorted(self.folder.parent.glob(f"*/{stage.path.name}")):
            done = Stage(stage.name, path).done
            # A search with another budget would make the arms unequal.
            if done is None or (stage.name in SEARCHES and done["trials"] != self.config.trials(stage.name)):
                continue
            storage.copy_stage(path, stage.path)
            stage.finish(done | {"taken_from": path.parent.name})
            self.did_work = True
            return

    def _connect(self) -> Share:
        """Ray, started when the first stage needs it."""
        if self._share is None:
            self._ray.enter_context(connected(self.address))
            self._share = cluster_share(self.config.resources)
        return self._share

    def _write_description(self) -> None:
        storage.write_text(self.folder / STUDY_FILE, self.config.to_toml())
        splits = self.splits
        counts = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
        self._description = {
            "name": self.config.name,
            "data": {**counts, "classes": list(splits.class_names), "channels": splits.channels,
                     "image_size": self.image_size},
            "epochs": self.config.train.epochs,
            "rungs": self.config.rungs,
            "stages": self._existing_stages(),
        }
        storage.write_json(self.folder / "stages.json", self._description)

    def _existing_stages(self) -> dict[str, str]:
        """The stages that have begun with the settings as they are now; older ones do not belong to this study."""
        names = [name for group in GROUPS for name in group]
        stages = {}
        for name in names:
            try:
                path = self.stage(name).path
            except TypeError:  # it depends on a teacher that is not there yet
                continue
            if path.is_dir():
                stages[name] = path.name
        return stages

    def _enlist(self, stage: Stage) -> None:
        """Tell readers of the study which folder serves a stage now."""
        if self._description["stages"].get(stage.name) != stage.path.name:
            self._description["stages"][stage.name] = stage.path.name
            storage.write_json(self.folder / "stages.json", self._description)

    def _show(self, stage: Stage, reused: bool = False) -> None:
        done = stage.done
        outcome = done["outcome"] + (f" (taken from {done['taken_from']})" if reused and "taken_from" in done else "")
        if mismatches := Record(stage.record_path, write=False).mismatches:
            outcome += f" · {mismatches} repeated reports came out differently"
        self.display.end(stage.name, outcome, done["seconds"], reused)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _run_trials(self, stages: list[Stage]) -> None:
        """Run the trials of these stages together, then close each of them."""
        from study.tuner import Job, forget_tune, run_trials

        share = self._connect()
        books: list[TrialBook] = []
        for stage in stages:
            books.append(self._book(stage, share, lambda: self.display.trials(books)))
        jobs = [Job(stage.name, book, self.task(stage.name)) for stage, book in zip(stages, books, strict=True)]
        for book in books:
            if not book.complete:
                book.record.begin_session(epochs=book.epochs, rungs=book.rungs, share=str(share))
        run_trials(jobs, self.folder, share, self.config.resources.worker_retries)
        failures = []
        for stage in stages:  # what has succeeded is closed, whatever became of the others
            try:
                getattr(self, f"_close_{stage.name}")(stage, Record(stage.record_path))
            except StudyFailedError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        forget_tune(self.folder)

    def _book(self, stage: Stage, share: Share, on_change: Callable[[], None]) -> TrialBook:
        config, name = self.config, stage.name
        record = Record(stage.record_path)
        proposers = {"teacher": self._teacher_runs, "confirm": self._confirm_runs}
        proposer: Proposer = (ListProposer(proposers[name]()) if name in proposers
                              else OptunaProposer.of(config, name, share.concurrent))
        if name in proposers:
            # A search can do without a failed trial; these runs are all needed, so a new start tries them again.
            for trial in list(record.trials.values()):
                if trial.state == "failed":
                    record.retry(trial.number)
        return TrialBook(
            record, proposer, on_change=on_change,
            epochs=config.teacher.epochs if name == "teacher" else config.train.epochs,
            rungs=[] if name in proposers else config.rungs, reduction_factor=config.search.reduction_factor,
            has_results=self._result_check(stage) if name in proposers else None,
        )

    def _result_check(self, stage: Stage) -> Callable[[TrialState], bool]:
        """Whether the weights, and for the confirmation the test answers, of a run are where its record says."""
        names = ("model.safetensors", "test.parquet") if stage.name == "confirm" else ("model.safetensors",)

        def has_results(trial: TrialState) -> bool:
            if stage.name == "teacher" and (stage.path / names[0]).exists():
                return True  # already chosen; the others have been removed
            return all((self.folder / trial.checkpoint["path"] / name).exists() for name in names)

        return has_results

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
        parameters, tried = _parameter_count(load_file(weights)), len(self.config.teacher.learning_rates)
        stage.finish({
            "outcome": f"{self.config.teacher.model} · {100 * best.metric(METRIC):.1f} % validation · "
                       f"{parameters:,} parameters" + (f", best of {tried} learning rates" if tried > 1 else ""),
            "seconds": record.seconds, "trial": best.number, "parameters": best.parameters,
            "model_parameters": parameters, "best_validation": best.metric(METRIC), "trials": tried,
            "weights": hash_file(weights),
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
        stage.finish({
            "outcome": f"{len(trials)} trials ({counts}) · best {100 * best.metric(METRIC):.1f} % validation at "
                       f"{show_parameters(best.parameters)}",
            "seconds": record.seconds, "trials": len(trials), **states, "winner": best.number,
            "parameters": best.parameters, "best_validation": best.metric(METRIC),
            "default_validation": record.trials[0].metric(METRIC) if record.trials[0].state == "complete" else None,
        })

    def _close_confirm(self, stage: Stage, record: Record) -> None:
        wanted = {run_key(run) for run in self._confirm_runs()}
        for trial in record.trials.values():
            if trial.state == "failed" and run_key(trial) in wanted:
                raise StudyFailedError(f"confirmation run {trial.number} ({trial.label}) failed: {trial.reason}; run "
                                       "the same command again to try it again")
        rows = self._confirm_rows(record)
        weights = load_file(stage.path / f"runs/{rows[0]['runs'][0]:03d}/model.safetensors")
        stage.finish({
            "outcome": f"{len(wanted)} runs on {self.config.confirm.seeds} fresh paired seeds",
            "seconds": record.seconds, "runs": len(record.trials), "seeds": self._confirm_seeds(), "rows": rows,
            "model_parameters": _parameter_count(weights),
        })

    def _run_teacher_logits(self, stage: Stage) -> None:
        import ray

        started = time.monotonic()
        earlier = (stage.done or {}).get("seconds", 0.0)
        share = self._connect()
        fits = self._logits_fit()
        task = ray.put(self.task("teacher_logits"))
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        pending = {}
        if not (stage.path / "test.parquet").exists():
            pending[ray.remote(**options)(_answer_held_out).remote(task, self.splits.test)] = None
        for view_seed in self._view_seeds() if fits else ():
            if not (stage.path / f"views-{view_seed}.npy").exists():
                pending[ray.remote(**options)(_answer_views).remote(task, view_seed)] = view_seed
        total = len(pending)
        while pending:
            self.display.update(f"{total - len(pending)}/{total} sets of views answered")
            (ready,), _ = ray.wait(list(pending), timeout=None)
            view_seed, answer = pending.pop(ready), ray.get(ready)
            if view_seed is None:
                _save_array(stage.path / "validation.npy", answer[0])
                storage.write_bytes(stage.path / "test.parquet", answer[1])
            else:
                _save_array(stage.path / f"views-{view_seed}.npy", answer)
        count, images = self.config.views.count or self.config.train.epochs, len(self.splits.student_train)
        size = _show_bytes(self._logits_bytes())
        budget = f"{self.config.views.cache_gib:g} GiB of views.cache_gib"
        stage.finish({
            "outcome": f"{count} views × {images} images × {len(self._view_seeds())} view seeds, {size} in fp16" if fits
                       else f"would need {size}, more than the {budget}: the teacher runs in the loop instead",
            "seconds": earlier + time.monotonic() - started, "cached": fits,
            "view_seeds": self._view_seeds() if fits else [],
        })

    def _run_report(self) -> None:
        from analysis import report

        self._run_output("report", "results/report.html", lambda: report.build(self.folder))

    def _run_export(self) -> None:
        from study import export

        target = self.folder / "export"

        def write() -> bool:
            if storage.read_json(target / export.KEY_FILE) == export.export_key(StudyFiles(self.folder)):
                return False
            export.export_student(self.config, self.folder, target)
            return True

        self._run_output("export", "export", write)

    def _run_output(self, name: str, path: str, write: Callable[[], bool]) -> None:
        """Bring something that others read up to date; `write` says whether there was anything to do."""
        started = time.monotonic()
        self.display.begin(name, text="writing")
        try:
            changed = write()
        finally:
            self.display.stop()
        self.did_work |= changed
        self.display.end(name, str(self.folder / path), time.monotonic() - started, reused=not changed)

    # -- trials -------------------------------------------------------------------------------------------------------

    def task(self, stage: str) -> Any:
        """What the runs of a stage share."""
        from trainables.task import Task

        config, splits = self.config, self.splits
        common = {"validation": splits.validation, "classes": len(splits.class_names), "image_size": self.image_size,
                  "views": config.views, "threads": config.resources.cpus_per_trial}
        if stage == "teacher":
            training = config.teacher.train_settings
            every = max(1, training.epochs // 20)
            # views.count limits the views whose logits are kept; the teacher itself sees a fresh one every epoch.
            common["views"] = config.views.model_copy(update={"count": None})
            return Task(train=splits.train, model=config.teacher.model_settings, training=training,
                        report_every=every, checkpoint_every=5 * every, keep_weights=True, **common)
        # Nobody stops a confirmation run, so it reports only when it is saved.
        report_every = config.checkpoint_every if stage == "confirm" else config.report_every
        task = Task(train=splits.student_train, model=config.student, training=config.train,
                    report_every=report_every, checkpoint_every=config.checkpoint_every,
                    keep_weights=stage == "confirm", **common)
        if stage == "baseline":
            return task
        if stage == "teacher_logits":
            return replace(task, teacher=self._teacher())
        seeds = [search_view_seed(config.seed)] if stage == "distill" else self._confirm_seeds()
        return replace(task, teacher=self._teacher(seeds), test=splits.test if stage == "confirm" else None)

    def _teacher(self, view_seeds: list[int] | None = None) -> Any:
        """The trained teacher, with its answers for the given view seeds where there are any."""
        from trainables.task import Teacher

        teacher = Teacher(self.config.teacher.model_settings, self.config.teacher.train_settings,
                          load_file(self._teacher_weights))
        if view_seeds is None:
            return teacher
        folder = self.stage("teacher_logits").path
        logits = {seed: np.load(path) for seed in view_seeds if (path := folder / f"views-{seed}.npy").exists()}
        return replace(teacher, logits=logits, validation_predictions=np.load(folder / "validation.npy"),
                       weights={} if len(logits) == len(view_seeds) else teacher.weights)

    def _winner_or_fail(self, stage: Stage, record: Record) -> TrialState:
        best = winner(record)
        if best is None:
            failed = [trial for trial in record.trials.values() if trial.state == "failed"]
            reason = f": {len(failed)} failed, the first with {failed[0].reason}" if failed else ""
            again = "run the same command again to try again" if stage.name == "teacher" else (
                f"change the settings, or remove {stage.path} to search again")
            raise StudyFailedError(f"{stage.name}: no trial reached its last epoch{reason}; {again}")
        return best

    # -- teacher logits -----------------------------------------------------------------------------------------------

    def _view_seeds(self) -> list[int]:
        return [search_view_seed(self.config.seed), *self._confirm_seeds()]

    def _logits_bytes(self) -> int:
        views = self.config.views.count or self.config.train.epochs
        return 2 * len(self._view_seeds()) * views * len(self.splits.student_train) * len(self.splits.class_names)

    def _logits_fit(self) -> bool:
        return self._logits_bytes() <= self.config.views.cache_gib * 2**30

    # -- confirmation -------------------------------------------------------------------------------------------------

    def _confirm_seeds(self) -> list[int]:
        return [small_seed(self.config.seed, "confirm", index) for index in range(self.config.confirm.seeds)]

    def _confirm_arms(self) -> list[Arm]:
        """The table's student rows: default and tuned configuration of both arms."""
        arms = []
        for arm, name in (("baseline", "baseline"), ("distill", "distilled")):
            record = Record(self.stage(arm).record_path, write=False)
            best = record.trials[self.stage(arm).done["winner"]]
            arms.append(Arm(name, "default", self.config.default_parameters(arm), 0))
            arms.append(Arm(name, "tuned", best.parameters, best.number))
        return arms

    def _confirm_runs(self) -> tuple[TrialState, ...]:
        """All runs, seed by seed, so that pairs are complete as early as can be."""
        return tuple(self._confirm_run(arm, seed) for seed in self._confirm_seeds() for arm in self._confirm_arms())

    def _confirm_run(self, arm: Arm, seed: int) -> TrialState:
        return TrialState(0, arm.parameters, seed, seed, "confirm", True, f"{arm.arm} {arm.configuration}")

    def _confirm_rows(self, record: Record) -> list[dict[str, Any]]:
        """Per row of the table: what ran, and the numbers of its runs, one per seed."""
        numbers = {run_key(trial): trial.number for trial in record.trials.values()}
        rows = []
        for arm in self._confirm_arms():
            runs = [numbers.get(run_key(self._confirm_run(arm, seed))) for seed in self._confirm_seeds()]
            rows.append({"arm": arm.arm, "configuration": arm.configuration, "parameters": arm.parameters,
                         "trial": arm.trial, "runs": runs})
        return rows


def show_parameters(parameters: dict[str, Any]) -> str:
    names = {"temperature": "T", "alpha": "alpha", "lr": "lr"}
    shown = [f"{names.get(name, name)}={value:.3g}" if isinstance(value, float) else f"{names.get(name, name)}={value}"
             for name, value in parameters.items()]
    return ", ".join(shown)


def _answer_views(task: Any, view_seed: int) -> np.ndarray:
    """A Ray task: the teacher's logits for all views of one view seed."""
    import torch

    from trainables.loop import default_device
    from trainables.teacher_logits import compute

    torch.set_num_threads(task.threads)
    device = default_device()
    teacher = task.load_teacher(device)
    return compute(teacher, task.make_views(teacher.size, view_seed, device), task.teacher_autocast(device))


def _answer_held_out(task: Any, test: ImageSet) -> tuple[np.ndarray, bytes]:
    """A Ray task: the teacher's predictions for the validation images, and its answers for the test images, once."""
    import tempfile

    import torch

    from trainables.loop import Evaluator, default_device, to_device
    from trainables.task import write_predictions

    torch.set_num_threads(task.threads)
    device = default_device()
    teacher, autocast = task.load_teacher(device), task.teacher_autocast(device)
    logits = Evaluator(*to_device(task.validation, device), teacher.size).logits(teacher, autocast)
    with tempfile.TemporaryDirectory() as folder:
        write_predictions(teacher, test, Path(folder) / "test.parquet")
        return logits.argmax(1).cpu().numpy(), (Path(folder) / "test.parquet").read_bytes()


def _save_array(path: Path, array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_bytes(path, buffer.getbuffer())


def _parameter_count(weights: dict[str, np.ndarray]) -> int:
    """Trainable numbers among a model's weights: all but the running statistics of normalisation layers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(array.size for name, array in weights.items() if name.rsplit(".", 1)[-1] not in buffers)


def _show_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"

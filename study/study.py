"""The pipeline: teacher, baseline, teacher_logits, distill, finalists, confirmation of both arms, report, export.

Every stage is a function of its own part of the settings and of its inputs. Its folder is named after the fingerprint
of both, and carries a done-mark that is written last. That is all there is to resume, reuse and reproducibility: what
is done is skipped, what was cut off goes on from its record, and a stage that another study beside this one has done
is taken over.
"""

from __future__ import annotations

import contextlib
import platform
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import STUDY_FILE
from kdstudy.config.models import check_models, trained_models
from kdstudy.config.settings import OUTPUTS, STAGE_NAMES, StudyConfig
from kdstudy.errors import MissingTeacherError, UserError
from kdstudy.plan import preflight
from kdstudy.search import warm_start
from kdstudy.search.manager import TrialBook
from kdstudy.search.proposer import OptunaProposer
from kdstudy.search.runs import ListProposer, Proposer, run_key
from kdstudy.stages import finalists
from kdstudy.stages.inputs import Stage
from kdstudy.stages.work import CONFIRMATIONS, SEARCHES, StageWork, count_parameters
from kdstudy.store import check as schema
from kdstudy.store import files
from kdstudy.store.fingerprints import fingerprint, hash_file
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.tune.cluster import (
    Share,
    cluster_address,
    cluster_nodes,
    cluster_share,
    connected,
    local_share,
    waiting_note,
)
from kdstudy.tune.slots import ClusterSlots, Slots
from kdstudy.watch.display import Display
from kdstudy.watch.trackers import feed as watch

if TYPE_CHECKING:  # they import torch, which a finished study can do without
    from kdstudy.trainables.task import Task
    from kdstudy.tune.tuner import Job

# Stages of one phase may run at the same time; what they need of each other is in `pipeline`.
# The baseline's finalists and confirmation are stages of their own, so that studies with another teacher share them.
PHASES = (("teacher", "baseline", "teacher_logits", "distill"), tuple(finalists.STAGES),
          ("confirm_baseline", "confirm"))


class Study(StageWork):
    """A study in its storage. `run` brings it to its end, or to the end of a stage, from wherever it is."""

    def __init__(self, config: StudyConfig, storage: Storage, display: Display, address: str | None = None):
        super().__init__(config, storage)
        self.display, self.address = display, address
        self._ray = contextlib.ExitStack()
        self._share: Share | None = None
        self._slots: Slots | None = None
        self.did_work = False
        self._checked = False
        self._wanted = config.stages

    # -- before anything starts ---------------------------------------------------------------------------------------

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

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, until: str = STAGE_NAMES[-1]) -> None:
        """Do every stage up to `until` that is not done. Raises UserError, StudyFailedError, InterruptedStudyError."""
        if self.storage.uri is None:
            preflight.check_place(self.storage)
        with (self.storage.driven(), self._ray, files.full_disk_noticed(self.folder),
              watch.watched(self.config, self.storage, self._note)):
            files.remove_drafts(self.folder)
            self._wanted = [name for name in STAGE_NAMES[: STAGE_NAMES.index(until) + 1] if name in self.config.stages]
            self._write_description()
            self._run_trials([name for name in self._wanted if name not in OUTPUTS])
            self.storage.forget_tune()
            for name in OUTPUTS:
                if name in self._wanted:
                    getattr(self, f"_run_{name}")()

    def _note(self, text: str) -> None:
        self.display.console.print(f"note: {text}", soft_wrap=True, markup=False)

    def _run_trials(self, names: list[str]) -> None:
        """Do the stages that are not done, each as soon as it can begin."""
        from kdstudy.tune.pipeline import Pipeline

        self._began, pipeline = False, Pipeline(self, names)
        try:
            pipeline.advance()
            if not pipeline.is_ended():
                from kdstudy.tune.tuner import run_trials

                run_trials(pipeline, self.storage, self._connect(), self.config.resources.worker_retries,
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
        schema.check_stage(name, stage.path)
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

    def _take_over(self, stage: Stage) -> None:
        """Copy the stage from a study beside this one that has done the same."""
        if stage.path.exists() and any(stage.path.iterdir()):
            return
        for path in self.storage.neighbours(stage.path.name):
            try:  # it may be anybody's
                schema.check_stage(stage.name, path)
            except UserError:
                continue
            done = Stage(stage.name, path, self.storage).done
            # A search with another budget would make the arms unequal.
            if done is None or (stage.name in SEARCHES and done["trials"] != self.config.trials(stage.name)):
                continue
            if stage.name in self.warm_started and not self._starts_alike(stage.name, path):
                continue
            files.copy_stage(path, stage.path)
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

    def is_parallel(self, stage: Stage) -> bool:
        """Whether its trials are run by several workers each, so that they are no business of Tune's."""
        return stage.name == "teacher" and self.config.resources.teacher_workers > 1

    def run_parallel(self, job: Job) -> None:
        from kdstudy.tune.ddp import run_parallel

        resources = self.config.resources
        run_parallel(job, self.storage, self._connect(), resources.teacher_workers, resources.worker_retries)

    def show(self, stage: Stage, reused: bool = False) -> None:
        """Leave a line about a stage that is done."""
        done = stage.done
        outcome = done["outcome"] + (f" (taken from {done['taken_from']})" if reused and "taken_from" in done else "")
        if mismatches := Record(stage.record_path, write=False).mismatches:
            outcome += f" · {mismatches} repeated reports came out differently"
        if not reused and "utilisation" in done:
            outcome += f" · {100 * done['utilisation']:.0f} % of {done['slots']:.3g} slots in use"
        self.display.end(stage.name, outcome, done["seconds"], reused)

    # -- Ray ----------------------------------------------------------------------------------------------------------

    def _connect(self) -> Share:
        """Ray, started when the first stage needs it."""
        if self._share is None:
            self.display.update("connecting to Ray")
            self._share = self._ray.enter_context(self.connected())
            self._slots = Slots(self._share.concurrent) if cluster_address(self.address) is None else ClusterSlots(
                self._share, self.config.resources, partial(preflight.problems_of, self, self._share), self._note,
                self._looked_at)
            self._ray.callback(self._slots.close)
            self._description["machine"] = describe_machine()
            self._save_description()
        return self._share

    @contextlib.contextmanager
    def connected(self) -> Iterator[Share]:
        """Ray, and what it has for trials. A cluster that others have started is looked at first: see `preflight`."""
        with connected(self.address) as ours:
            self._looked_at = {node.id for node in cluster_nodes()}
            given = cluster_share(self.config.resources) if ours else preflight.check_cluster(self)
            if not ours and (note := waiting_note(given)):
                self.display.console.print(note, soft_wrap=True, markup=False)
            yield given

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

    # -- a teacher that is given --------------------------------------------------------------------------------------

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

    def _evaluate_teacher(self, stage: Stage) -> None:
        """A teacher that is given: keep its weights with the study, and see how good it is on the validation images."""
        import ray

        started = time.monotonic()
        if self.config.teacher.logits:
            self._finish_given(stage, self._logits_file.accuracy, started, {
                "weights": self._teacher_inputs()[1], "members": [], "model_parameters": None,
                "kind": None, "family": None})
            return
        from kdstudy.trainables import models
        from kdstudy.trainables.task import Teacher

        share = self._connect()
        members, digests, parameters = [], [], 0
        for index, member in enumerate(self.given_members):
            path = stage.path / f"member-{index}.safetensors"
            save_file(member.weights, path)
            members.append({"model": member.model.model_dump(), "weights": path.name,
                            "normalised": [list(member.mean), list(member.std)]})
            digests.append(hash_file(path))
            parameters += count_parameters(member.weights)
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

    def _unpack_logits(self, stage: Stage) -> None:
        """Another's answers, from a file, to where the study's own would be."""
        import tempfile

        import torch

        from kdstudy.trainables.task import write_answers

        started, given = time.monotonic(), self._logits_file
        for view_seed in self.view_seeds:
            self._save_views(stage, view_seed, *given.views(view_seed))
        files.write_array(stage.path / "validation.npy", given.validation.astype(np.int64))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "test.parquet"
            write_answers(torch.from_numpy(given.test.astype(np.float32)), self.splits.test.labels, path)
            files.write_bytes(stage.path / "test.parquet", path.read_bytes())
        self._finish_logits(stage, True, time.monotonic() - started)

    # -- what readers of the study find -------------------------------------------------------------------------------

    def _write_description(self) -> None:
        splits, settings = self.splits, self.config.to_toml()
        if not files.has_text(self.folder / STUDY_FILE, settings):
            self._check_models()  # settings that cannot work do not take the place of those that do
            self._note_changes(settings)
            files.write_text(self.folder / STUDY_FILE, settings)
            self.storage.publish(self.folder / STUDY_FILE)
        counts = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
        counts["unlabelled"] = len(splits.unlabelled) if splits.unlabelled else 0
        earlier = files.read_json(self.folder / "stages.json")
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
            self._note(f"{self.storage} was run with other settings before; now {', '.join(changes[:5])}{more}. "
                       f"`kdstudy run {self.storage}` alone goes on with what a study has")

    def _save_description(self) -> None:
        files.write_json(self.folder / "stages.json", self._description)
        self.storage.publish(self.folder / "stages.json")

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

    def _run_report(self) -> None:
        from kdstudy.analysis import report

        self._run_output("report", "results/report.html", lambda: report.build(self.folder))
        self.storage.publish(self.folder / "results")

    def _run_export(self) -> None:
        from kdstudy.stages import export

        target = self.folder / "export"

        def write() -> bool:
            if StudyFiles(self.folder).has_current_export:
                return False
            export.export_student(self.config, self.folder, target)
            return True

        self._run_output("export", "export", write)
        self.storage.publish(target)

    def _run_output(self, name: str, path: str, write: Callable[[], bool]) -> None:
        """Bring something that others read up to date; `write` says whether there was anything to do."""
        started = time.monotonic()
        self.display.begin(name, text="writing")
        try:
            changed = write()
        finally:
            self.display.stop()
        self.did_work |= changed
        self.display.end(name, f"{self.storage}/{path}", time.monotonic() - started, reused=not changed)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A study file's settings by their full names."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
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

    from kdstudy.trainables.loop import default_device, to_device
    from kdstudy.trainables.teacher_logits import held_out

    torch.set_num_threads(task.threads)
    device = default_device()
    images, labels = to_device(task.validation, device)
    logits = held_out(task.load_teacher(device), images, labels)
    return (logits.argmax(1) == labels).double().mean().item()

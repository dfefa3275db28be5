"""What each stage runs, and what becomes of what its trials have found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.search.manager import METRIC
from kdstudy.search.optuna_file import write_optuna_file
from kdstudy.search.runs import ListProposer, run_key, search_view_seed, winner
from kdstudy.stages import finalists
from kdstudy.stages.inputs import Stage, StudyInputs
from kdstudy.store import files
from kdstudy.store.fingerprints import hash_file
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.trainables.files import TEST_ANSWERS, UNLABELLED, VALIDATION, VIEWS
from kdstudy.trainables.paths import inside, remove
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings
from kdstudy.watch.display import show_bytes
from kdstudy.watch.progress import show_parameters

if TYPE_CHECKING:  # they import torch, which a finished study can do without
    from kdstudy.trainables.task import Member, Task, Teacher

SEARCHES = ("baseline", "distill")
CONFIRMATIONS = {"confirm_baseline": "baseline", "confirm": "distill"}  # and the search whose winner they retrain
PIECES = 5  # into which a view seed's views are cut, so that they are spread over workers
ONLY = "only {} tuned"  # the configuration that leaves temperature and alpha at their defaults


@dataclass(frozen=True)
class Arm:
    """One row of the confirmation: a configuration of the baseline or of the distillation."""

    arm: str  # baseline, distilled
    configuration: str  # default, tuned, or ONLY of what both arms search
    parameters: dict[str, Any]
    trial: int | None  # its number in the search


class StageWork(StudyInputs):
    """A stage's runs, the task that they share, and its done-mark."""

    def __init__(self, config: StudyConfig, storage: Storage):
        super().__init__(config, storage)
        self._found: dict[str, dict[str, Any]] = {}

    def is_current(self, stage: Stage) -> bool:
        """Done, and with as many trials, seeds and views as are wanted now."""
        done = stage.done
        if done is None:
            return False
        if stage.name in SEARCHES:
            return done["trials"] >= self.config.trials(stage.name)
        if stage.name == "teacher_logits":
            kept = all(files.is_whole_array(stage.path / f"views-{seed}.npy") for seed in self.view_seeds)
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

    def close(self, stage: Stage) -> None:
        """Put together what a stage's trials have found. Raises StudyFailedError where that does not do."""
        getattr(self, f"_close_{stage.name}")(stage, stage.record())

    # -- what there is to run -----------------------------------------------------------------------------------------

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
            whole, part = stage.path / f"views-{piece.view_seed}.npy", self.folder / piece.checkpoint["path"] / VIEWS
            return files.is_whole_array(whole) or files.is_whole_array(part)
        return any((folder / TEST_ANSWERS).exists() for folder in (stage.path, self.folder / piece.checkpoint["path"]))

    def _plain_task(self) -> Task:
        """What the student's runs share, whatever the stage."""
        from kdstudy.trainables.task import Task

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

    # -- teacher ------------------------------------------------------------------------------------------------------

    def _teacher_runs(self) -> tuple[TrialState, ...]:
        """One per learning rate, otherwise alike."""
        seed = small_seed(self.config.seed, "teacher")
        return tuple(TrialState(0, {"lr": lr}, seed, seed, "teacher") for lr in self.config.teacher.learning_rates)

    def _close_teacher(self, stage: Stage, record: Record) -> None:
        best = self._winner_or_fail(stage, record)
        weights = stage.path / "model.safetensors"
        if not weights.exists():
            files.copy_file(inside(self.folder, best.checkpoint["path"]) / weights.name, weights)
        remove(stage.path / "runs", stage.path, if_possible=True)
        parameters, tried = count_parameters(files.read_weights(weights)), len(self.config.teacher.learning_rates)
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

    def teacher(self, view_seeds: list[int] | None = None) -> Teacher:
        """The trained teacher, with its answers for the given view seeds where there are any."""
        from kdstudy.trainables.task import Teacher

        done = self._teacher_done
        if view_seeds is None:
            return Teacher(self._members(self.stage("teacher").path, done["members"]))
        folder = self.stage("teacher_logits").path

        def stored(kind: str) -> dict[int, np.ndarray]:
            paths = {seed: folder / f"{kind}-{seed}.npy" for seed in view_seeds}
            return {seed: files.read_array(path) for seed, path in paths.items() if path.exists()}

        logits = stored("views")
        members = () if len(logits) == len(view_seeds) else self._members(self.stage("teacher").path, done["members"])
        return Teacher(members, files.read_array(folder / "validation.npy"), logits, stored("unlabelled"))

    def _members(self, folder: Path, described: list[dict[str, Any]]) -> tuple[Member, ...]:
        """A teacher's models, as its done-mark describes them."""
        return tuple(self._member(folder, member) for member in described)

    def _member(self, folder: Path, described: dict[str, Any]) -> Member:
        from kdstudy.trainables import models
        from kdstudy.trainables.task import Member

        check_function(described["model"]["model"], self.config)
        settings, path = ModelSettings.model_validate(described["model"]), folder / described["weights"]
        weights = files.read_weights(path)
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
                f"change the settings, or remove {self.storage}/{stage.path.name} to search again")
            raise StudyFailedError(f"{stage.name}: no trial reached its last epoch{reason}; {again}")
        return best

    # -- the teacher's answers ----------------------------------------------------------------------------------------

    def _logits_runs(self) -> tuple[TrialState, ...]:
        """The pieces of the teacher's answers that are not there yet: once the held-out images, then the views, those
        of the search first."""
        folder, runs = self.stage("teacher_logits").path, []
        if not (folder / "test.parquet").exists():
            runs.append(TrialState(0, {"first_view": 0, "view_count": 0}, 0, 0, "teacher_logits", True,
                                   "held-out images"))
        for view_seed in self.view_seeds if self.logits_fit else ():
            if not files.is_whole_array(folder / f"views-{view_seed}.npy"):
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
        folders = {run_key(run): inside(self.folder, run.checkpoint["path"]) for run in runs}
        for run in runs:
            if not run.parameters["view_count"] and folders[run_key(run)].exists():
                for name in (VALIDATION, TEST_ANSWERS):
                    files.copy_file(folders[run_key(run)] / name, stage.path / name)
        for view_seed in self.view_seeds if self.logits_fit else ():
            if not files.is_whole_array(stage.path / f"views-{view_seed}.npy"):
                pieces = [folders[run_key(piece)] for piece in self._pieces(view_seed)]
                self._save_views(stage, view_seed, *self._joined(pieces))
                for folder in pieces:  # at once: together they are as large as the whole
                    remove(folder, stage.path, if_possible=True)
        remove(stage.path / "runs", stage.path, if_possible=True)
        self._finish_logits(stage, self.logits_fit, record.seconds)

    def _joined(self, folders: list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
        """The answers for all views from those of each piece; also for the images without labels."""
        names = (VIEWS, UNLABELLED) if self.splits.unlabelled else (VIEWS,)
        labelled, *unlabelled = (np.concatenate([files.read_array(folder / name) for folder in folders])
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
        arrays = {f"unlabelled-{view_seed}.npy": unlabelled, f"views-{view_seed}.npy": logits}
        for name, array in arrays.items():  # the views last: they say that both are there
            if array is not None:
                files.write_array(stage.path / name, array)
                self.storage.publish(stage.path / name)

    # -- searches -----------------------------------------------------------------------------------------------------

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

    def _findings(self, arm: str) -> dict[str, Any]:
        """What the sensitivity analysis says of a finished search: the ranking of its full-budget trials, and for the
        distillation the best values of what both arms search, the rest at its defaults (None if nothing can be said).
        """
        done = self.stage(arm).done
        if "ranking" in done:
            return done
        if arm not in self._found:
            from kdstudy.analysis.sensitivity.ranking import choices

            ranking, best = choices(StudyFiles(self.folder), arm)
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

    # -- finalists ----------------------------------------------------------------------------------------------------

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

    # -- confirmation -------------------------------------------------------------------------------------------------

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

    def _close_confirm_baseline(self, stage: Stage, record: Record) -> None:
        self._close_confirm(stage, record)

    def _close_confirm(self, stage: Stage, record: Record) -> None:
        wanted = {run_key(run) for run in self._confirm_runs(stage.name)}
        for trial in record.trials.values():
            if trial.state == "failed" and run_key(trial) in wanted:
                raise StudyFailedError(f"confirmation run {trial.number} ({trial.label}) failed: {trial.reason}; run "
                                       "the same command again to try it again")
        rows = self._confirm_rows(stage.name, record)
        earlier = files.read_json(stage.path / "done.json") or {}
        weights = next(stage.path.glob("runs/*/model.safetensors"), None)  # a packed baseline has none
        stage.finish({
            **_taken(stage, record),
            "outcome": f"{len(wanted)} runs on {self.config.confirm.seeds} fresh paired seeds",
            "seconds": record.seconds, "runs": len(record.trials), "seeds": self._confirm_seeds(), "rows": rows,
            "model_parameters": count_parameters(files.read_weights(weights)) if weights
            else earlier["model_parameters"],
        })


def _taken(stage: Stage, record: Record) -> dict[str, str]:
    """Where a stage was taken from, for its done-mark, if all that it has run was: it may only choose anew among it."""
    earlier = files.read_json(stage.path / "done.json") or {}
    if "taken_from" in earlier and earlier["runs"] == len(record.trials):
        return {"taken_from": earlier["taken_from"]}
    return {}


def check_function(model: str, config: StudyConfig) -> None:
    """See whether a function that a file names as a model is one that the study's own settings name, for it will be
    called. Raises UserError."""
    if ":" in model and model not in (config.teacher.model, config.teacher.function):
        raise UserError(f"the teacher's model is the function {model}, which is called only where the study says so: "
                        f"set teacher.function = {model!r}")


def count_parameters(weights: dict[str, np.ndarray]) -> int:
    """Trainable numbers among a model's weights: all but the running statistics of normalisation layers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(array.size for name, array in weights.items() if name.rsplit(".", 1)[-1] not in buffers)

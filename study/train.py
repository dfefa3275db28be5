"""`kdstudy train`: train one teacher, baseline or distilled student in this process, without a search."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from kdstudy.analysis.stage_names import stage_for
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import MAIN
from kdstudy.errors import MissingTeacherError, StudyFailedError, UserError
from kdstudy.planning.preflight import check_settings
from kdstudy.search.runs import search_view_seed
from kdstudy.stages.students import TEACHER
from kdstudy.store import files
from kdstudy.store.record import METRIC, TrialState
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import models
from kdstudy.trainables.distill import start_distillation
from kdstudy.trainables.files import TEST_PREDICTIONS, WEIGHTS
from kdstudy.trainables.loop import Training
from kdstudy.trainables.predictions import write_predictions
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.task import Member, Task, Teacher, save, start, teacher_predictions
from kdstudy.trainables.trainable import describe, not_finite
from kdstudy.watch.console import print_prose

TRIAL_KEY_FILE = "trial.json"  # identifies the trial that was trained again
KEY_FILE = "teacher.json"  # identifies the settings that a separately trained teacher belongs to


def train(config: StudyConfig, storage: Storage, loop: str, parameters: dict[str, float], console: Console, *,
          seed: int | None = None, out: Path | None = None) -> Path:
    """Train one model with the study's settings and test it. Returns the folder with weights, history and result.

    seed: for the initial weights, image order and views; by default the seeds of the search's default point.
    Raises UserError where the settings are invalid, StudyFailedError where the loss is not finite.
    """
    study = Study(config, storage)
    storage.refresh(everything=True)
    check_settings(study, sections=())  # a loop fetches the weights that it needs
    own = storage.folder / "train" / loop
    with files.StudyLock(out or own):
        trained = _train(study, loop, parameters, console, seed, out or own)
    if out is None:
        storage.publish(own)
    return trained


def retrain(config: StudyConfig, storage: Storage, arm: str, number: int, console: Console, *,
            stopped: bool = False) -> Path:
    """Train a search's trial again, from its record, up to the epoch that it had reached, and test it. A search keeps
    no weights, and the same trial gives the same numbers again.

    arm: `baseline` or `distill`. stopped: whether it may be one that was stopped early. Returns the folder with weights
    and test predictions, in which a second call finds them. Raises UserError if there is no such trial.
    """
    study = Study(config, storage)
    stage = study.stages[arm]
    folder = stage.known_folder
    trials = folder.read_record().trials if folder else {}
    trial = _known_trial(study, arm, trials, number, stopped)
    check_settings(study, sections=())
    out = storage.folder / "train" / f"{arm}-{number:03d}"
    key = {"search": folder.path.name, "trial": number, "epochs": trial.epoch}
    with files.StudyLock(out):
        whole = all((out / name).exists() for name in (WEIGHTS, TEST_PREDICTIONS))
        if whole and files.read_json(out / TRIAL_KEY_FILE) == key:
            console.print(f"trial {number}: already trained again, in {out}", highlight=False, soft_wrap=True)
            return out
        parameters = dict(trial.parameters)
        whose = parameters.pop("teacher", MAIN)
        task, training = _student(study, arm, parameters, whose, console, own_seed=False, seed=trial.seed,
                                  view_seed=trial.view_seed)
        console.print(f"training trial {number} again, {trial.epoch} epochs", highlight=False)
        reached = _run(training, task, console, until=trial.epoch)[-1][METRIC]
        if abs(reached - trial.metric(METRIC)) > 1e-9:
            print_prose(console, f"note: its validation accuracy is now {100 * reached:.2f} %, in the search it was "
                                 f"{100 * trial.metric(METRIC):.2f} %: another machine, or other versions, round "
                                 "otherwise")
        with files.writing(out):
            (out / TRIAL_KEY_FILE).unlink(missing_ok=True)  # of another search, if this is cut off
            models.save_weights(training.result, out / WEIGHTS)
            write_predictions(training.result, task.test, out / TEST_PREDICTIONS)
        files.write_json(out / TRIAL_KEY_FILE, key)
    return out


def _known_trial(study: Study, arm: str, trials: dict[int, TrialState], number: int, stopped: bool) -> TrialState:
    """Raises UserError unless the trial has ended and can be trained again."""
    if (trial := trials.get(number)) is None:
        known = f"; its trials are 0 to {max(trials)}" if trials else ""
        raise UserError(f"--trial {number}: the {arm} search of {study.storage} has no such trial{known}")
    if trial.state not in ("complete", "stopped"):
        why = f"failed: {trial.reason}" if trial.state == "failed" else "has not ended yet"
        raise UserError(f"--trial {number} {why}")
    if trial.state == "stopped" and not stopped:
        raise UserError(f"--trial {number} was stopped early, after epoch {trial.epoch} of "
                        f"{study.config.train.epochs}; add --stopped to export it as it was then")
    return trial


def _train(study: Study, loop: str, parameters: dict[str, float], console: Console, seed: int | None,
           out: Path) -> Path:
    config, splits = study.config, study.context.splits
    parameters = dict(parameters)
    whose = parameters.pop("teacher", MAIN)  # the default point's
    if loop == "teacher" and config.teacher.is_given:
        raise UserError("the teacher is given: there is nothing to train")
    seeds = _seeds(config, loop, seed)
    if loop == "teacher":
        task = replace(study.stages["teacher"].task(), test=splits.test)
        training = start(task, parameters, **seeds)
    else:
        task, training = _student(study, loop, parameters, whose, console, own_seed=seed is not None, **seeds)
    shown = ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}"
                      for name, value in parameters.items())
    console.print(f"[bold]{loop}[/bold]  {escape(task.model.model)}, {shown}, {task.training.epochs} epochs",
                  highlight=False)
    history = _run(training, task, console)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        save(training, task, out)
    test = pd.read_parquet(out / "test.parquet", columns=["label", "prediction"])
    result = {"loop": loop, "parameters": parameters, **seeds, "history": history,
              "test_accuracy": float((test["label"] == test["prediction"]).mean()), "test_images": len(test)}
    files.write_json(out / "result.json", result)
    if loop == "teacher":
        files.write_json(out / KEY_FILE, {"teacher": study.stages["teacher"].folder.path.name, **parameters})
    console.print(f"test accuracy {100 * result['test_accuracy']:.2f} % on {len(splits.test)} images · weights and "
                  f"history in {out}", highlight=False, soft_wrap=True, markup=False)
    return out


def _student(study: Study, arm: str, parameters: dict[str, Any], teacher: str, console: Console, *, own_seed: bool,
             seed: int, view_seed: int) -> tuple[Task, Training]:
    """Start a student of an arm, `baseline` or `distill`, that is tested at its end. teacher: the name of the one that
    it learns from. own_seed: whether the seeds are not the search's."""
    splits = study.context.splits
    task = replace(study.stages["baseline"].task(), test=splits.test)
    if arm == "baseline":
        return task, start(task, parameters, seed=seed, view_seed=view_seed)
    task = replace(task, teacher=_teacher(study, teacher, console, own_seed), unlabelled=splits.unlabelled)
    return task, start_distillation(task, parameters, seed=seed, view_seed=view_seed)


def _seeds(config: StudyConfig, loop: str, seed: int | None) -> dict[str, int]:
    if seed is not None:
        return {"seed": seed, "view_seed": seed}
    if loop == "teacher":
        own = small_seed(config.seed, "teacher")
        return {"seed": own, "view_seed": own}
    return {"seed": small_seed(config.seed, loop, 0), "view_seed": search_view_seed(config.seed)}


def _run(training: Training, task: Task, console: Console, until: int | None = None) -> list[dict[str, Any]]:
    """Train to the end, or to the epoch `until`. Returns the reports."""
    history, last = [], until or training.settings.epochs
    while training.epoch < last:
        try:
            report = training.run(min(task.report_every, last - training.epoch))
        except (RuntimeError, ValueError) as error:
            raise StudyFailedError(describe(error)) from None
        history.append(report)
        _print_report(report, console)
        if failure := not_finite(report):
            raise StudyFailedError(f"{failure}; try a smaller --lr")
    return history


def _print_report(report: dict[str, Any], console: Console) -> None:
    soft = f" (hard {report['hard_loss']:.3f}, soft {report['soft_loss']:.3f})" if report.get("soft_loss") else ""
    agreement = f" · agrees with the teacher {100 * report['agreement']:.1f} %" if "agreement" in report else ""
    console.print(f"epoch {report['epoch']:4}  loss {report['train_loss']:.3f}{soft} · validation "
                  f"{100 * report['validation_accuracy']:.2f} %{agreement} · "
                  f"{report['images_per_second']:,.0f} images/s",
                  highlight=False, soft_wrap=True)


def _teacher(study: Study, name: str, console: Console, own_seed: bool) -> Teacher:
    """Return a teacher of the study if it is done, else the result of `kdstudy train teacher`, else train one now."""
    teacher = _find_other_teacher(study, name) if name != MAIN else _find_teacher(study, console, own_seed)
    if not teacher.members:  # a logits file already has the teacher's predictions
        return teacher
    predictions = teacher_predictions(replace(study.stages["baseline"].task(), teacher=teacher))
    if name == MAIN and study.config.teacher.is_given and (doubt := study.stages["teacher"].doubt(predictions)):
        print_prose(console, f"note: {doubt}")
    return replace(teacher, validation_predictions=predictions)


def _find_other_teacher(study: Study, name: str) -> Teacher:
    """Raises UserError while the study has not trained it, and if it is a file of logits."""
    if (stage := study.stages.get(stage_for(TEACHER, name))) is None:
        raise UserError(f"the teacher {str(name)[:40]!r} is not one of search.teacher; restore the settings that the "
                        "study was run with")
    if stage.settings.logits:
        raise UserError(f"the teacher {name!r} is a file of logits, and this command needs its model; use "
                        f"--set default.teacher={MAIN}")
    if stage.folder.done is None or not (members := stage.members()):
        raise UserError(f"the teacher {name!r} has no trained model in {study.storage}; run `kdstudy run "
                        f"{study.storage} --until {stage.name}` first, or use --set default.teacher={MAIN}")
    return Teacher(members)


def _find_teacher(study: Study, console: Console, own_seed: bool) -> Teacher:
    config = study.config
    if config.teacher.logits:
        if own_seed:
            raise UserError("--seed has its own views, for which teacher.logits has no logits; leave it out")
        try:
            return study.stages["teacher_logits"].teacher([search_view_seed(config.seed)])
        except (MissingTeacherError, FileNotFoundError):
            raise UserError(f"the logits of {config.teacher.logits} are not part of the study yet; run `kdstudy run "
                            "STUDY --until teacher_logits` first") from None
    if study.stages["teacher"].folder.done is not None:
        return Teacher(study.stages["teacher"].members())
    if config.teacher.trained:
        return study.stages["teacher"].given_teacher()
    own = study.folder / "train" / "teacher"
    key = files.read_json(own / KEY_FILE)
    if not (isinstance(key, dict) and key.get("teacher") == study.stages["teacher"].folder.path.name):
        console.print("the study has no trained teacher yet: training it first", highlight=False)
        with files.StudyLock(own):
            _train(study, "teacher", {"lr": config.teacher.learning_rates[0]}, console, None, own)
        study.storage.publish(own)
        key = files.read_json(own / KEY_FILE)
    console.print(f"teacher: {own}, lr {key['lr']}", highlight=False, soft_wrap=True, markup=False)
    return Teacher((Member(study.context.model("teacher"), config.teacher.train_settings,
                           files.read_weights(own / "model.safetensors")),))

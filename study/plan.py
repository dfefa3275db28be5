"""What a study will do and what it will cost, before it does it."""

import math
import time
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from analysis.results import ARMS
from study import preflight
from study.cluster import Share, cluster_address, share
from study.config import ResourceSettings, StudyConfig
from study.display import Display, clock
from study.errors import MissingTeacherError
from study.home import Home
from study.record import Record
from study.stages import Stage, Study, describe_machine, stages_of
from trainables import models
from trainables.settings import ModelSettings

BACKWARD = 3  # forward and backward together cost about three forwards
MEASURED_STEPS = 3
MEASURED_BATCH = 32
# What a data-centre GPU sustains on models of this size is a small part of its peak; --tflops says otherwise.
ASSUMED_TFLOPS = 40.0


@dataclass(frozen=True)
class StagePlan:
    """One stage's work. `epochs` is what is expected once early stopping has had its say."""

    name: str
    runs: int
    protected: int
    epochs_each: int
    rungs: tuple[int, ...]
    epochs: float
    images_per_epoch: int
    flop_per_image: float
    seconds_per_epoch: float | None
    done: bool
    recorded_seconds: float | None = None

    @property
    def flop(self) -> float:
        return self.epochs * self.images_per_epoch * self.flop_per_image

    def seconds(self, concurrent: int) -> float | None:
        """Wall time: the work divided among as many as run at a time, but no less than one run takes."""
        if self.seconds_per_epoch is None:
            return None
        if not self.runs:
            return 0.0
        return self.seconds_per_epoch * max(self.epochs / concurrent, self.epochs_each)


def expected_epochs(epochs: int, rungs: list[int], reduction_factor: int) -> float:
    """Epochs a trial that may be stopped runs on average, if each rung keeps one trial in `reduction_factor`."""
    expected, survivors, earlier = 0.0, 1.0, 0
    for rung in rungs:
        expected += survivors * (rung - earlier)
        survivors, earlier = survivors / reduction_factor, rung
    return expected + survivors * (epochs - earlier)


def make_plan(study: Study, measure: bool = False, flop_rate: float | None = None) -> list[StagePlan]:
    """The stages that train or evaluate models. Costs per epoch come from the study's own record where there is one,
    from a few timed steps where `measure` asks for them, from an assumed `flop_rate` (operations a second), or else
    they are None."""
    config, splits = study.config, study.splits
    student = BACKWARD * forward_flop(config.student, study)
    trained = not config.teacher.is_given
    teacher = [forward_flop(settings, study) for settings in teacher_models(study)]
    cost = {"teacher": _seconds_per_epoch(study, "teacher") if trained else None,
            "student": _seconds_per_epoch(study, "baseline")}
    if measure:
        cost = {"teacher": cost["teacher"] or (_measure(study, "teacher") if trained else None),
                "student": cost["student"] or _measure(study, "baseline")}
    runs = len(config.teacher.learning_rates) if trained else 0
    plans = [StagePlan("teacher", runs, 0, config.teacher.epochs, (), runs * config.teacher.epochs, len(splits.train),
                       BACKWARD * sum(teacher), cost["teacher"] if trained else 0.0, _is_done(study, "teacher"))]
    plans.append(_search_plan(study, "baseline", student, cost["student"]))
    views, seeds = config.view_count, len(study.view_seeds) if teacher else 0
    answered = splits.seen_by_student
    forward = cost["teacher"] and cost["teacher"] / BACKWARD * answered / len(splits.train)
    plans.append(StagePlan("teacher_logits", seeds, 0, views, (), seeds * views, answered, sum(teacher),
                           forward if teacher else 0.0, _is_done(study, "teacher_logits")))
    # Images without labels come on top of every labelled batch wherever there is a soft loss.
    more = 1 + config.data.unlabelled
    soft_cost = cost["student"] and cost["student"] * more
    plans.append(_search_plan(study, "distill", student * more, soft_cost))
    confirmed = 2 * config.confirm.seeds
    for name, runs, factor, seconds in (
            ("finalists_baseline", _finalist_runs(config, "baseline"), 1, cost["student"]),
            ("finalists", _finalist_runs(config, "distill"), more, soft_cost),
            ("confirm_baseline", confirmed, 1, cost["student"]),
            ("confirm", confirmed + bool(config.shared_parameters) * config.confirm.seeds, more, soft_cost)):
        if name not in stages_of(config):
            continue
        plans.append(StagePlan(name, runs, 0, config.train.epochs, (), runs * config.train.epochs,
                               len(splits.student_train), student * factor, seconds, _is_done(study, name)))
    if flop_rate:
        plans = [replace(plan, seconds_per_epoch=plan.images_per_epoch * plan.flop_per_image / flop_rate)
                 for plan in plans]
    return [replace(plan, recorded_seconds=study.stage(plan.name).done["seconds"]) if plan.done else plan
            for plan in plans]


def _finalist_runs(config: StudyConfig, arm: str) -> int:
    """At most: the default point may be among the best."""
    return min(config.finalists.configurations + 1, config.trials(arm)) * config.finalists.seeds


def teacher_models(study: Study) -> list[ModelSettings]:
    """The models whose answers the student learns from; none where there is a file of logits."""
    if study.config.teacher.is_given:
        return [member.model for member in study.given_members]
    return [study.config.teacher.model_settings]


def _search_plan(study: Study, arm: str, flop: float, seconds: float | None) -> StagePlan:
    config = study.config
    epochs, trials = config.train.epochs, config.trials(arm)
    protected = min(trials, config.protected(arm) + 1)
    free = expected_epochs(epochs, config.rungs, config.search.reduction_factor)
    expected = protected * epochs + (trials - protected) * free
    return StagePlan(arm, trials, protected, epochs, tuple(config.rungs), expected,
                     len(study.splits.student_train), flop, seconds, _is_done(study, arm))


def forward_flop(settings: ModelSettings, study: Study) -> float:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    with torch.device("meta"):
        model = _build(settings, study)
    images = torch.zeros(1, study.splits.channels, model.size, model.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.net.eval()(images)
    return counter.get_total_flops()


def parameter_count(settings: ModelSettings, study: Study) -> int:
    with torch.device("meta"):
        return _build(settings, study).parameter_count


def _build(settings: ModelSettings, study: Study) -> models.Classifier:
    return models.build(settings.model_copy(update={"pretrained": False}), classes=len(study.splits.class_names),
                        channels=study.splits.channels, image_size=study.image_size)


def _stage(study: Study, name: str) -> Stage | None:
    """A stage's folder; None where it depends on a teacher that is not there yet."""
    try:
        return study.stage(name)
    except MissingTeacherError:
        return None


def _is_done(study: Study, name: str) -> bool:
    stage = _stage(study, name)
    return stage is not None and study.is_current(stage)


def _seconds_per_epoch(study: Study, name: str) -> float | None:
    """The median over what is on record."""
    stage = _stage(study, name)
    if stage is None or not stage.record_path.exists():
        return None
    trials = Record(stage.record_path, write=False).trials.values()
    costs = sorted(trial.metric("seconds") / trial.epoch for trial in trials if trial.epoch and trial.metric("seconds"))
    return costs[len(costs) // 2] if costs else None


def _measure(study: Study, name: str) -> float:
    """Seconds per epoch, from a few steps on a few images here."""
    from trainables.task import start

    task = study.task(name)
    few = task.train.take(torch.arange(min(MEASURED_BATCH, len(task.train), task.training.batch_size)).numpy())
    training = start(replace(task, train=few), {"lr": 1e-4}, seed=0, view_seed=0)
    training.train_epoch()
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        training.train_epoch()
    return (time.perf_counter() - started) / MEASURED_STEPS / len(few) * len(task.train)


def show_plan(config: StudyConfig, home: Home, console: Console, measure: bool, gpus: int | None = None,
              tflops: float = ASSUMED_TFLOPS, address: str | None = None) -> None:
    """Print the plan, for this machine, for the cluster at `address` or in RAY_ADDRESS, or, as an estimate, for `gpus`
    GPUs that each do `tflops` 10^12 operations a second. Raises UserError where the study cannot work there."""
    home.refresh(everything=True)  # done-marks vouch for all files
    study = Study(config, home, Display(console, stages_of(config)), address)
    study.check(machine=not gpus)
    machine, described = _machine(study, gpus)
    plans = make_plan(study, measure and not gpus, tflops * 1e12 if gpus else None)
    student = parameter_count(config.student, study)
    teacher = sum(parameter_count(settings, study) for settings in teacher_models(study))
    console.print(f"[bold]{config.name}[/bold]  {escape(config.about)}\n")
    facts = {
        "data": _show_data(study),
        "teacher": config.teacher.title + (f", {teacher:,} parameters" if teacher else ", given as logits"),
        "student": f"{config.student.model}, {student:,} parameters"
                   + (f", {teacher / student:.1f}x smaller" if teacher else ""),
        "searched": ", ".join(f"{name} {_show_range(range_)}" for name, range_ in config.space("distill").items())
                    or "nothing: the default point alone; give ranges in [search], e.g. lr = {log = [1e-4, 1e-2]}",
        "stopping": f"below the best 1/{config.search.reduction_factor} at epoch "
                    f"{', '.join(map(str, config.rungs))} of {config.train.epochs}" if config.rungs else "none",
        "machine": described,
        "place": str(home),
    }
    if study.warm_started:
        facts["start"] = _show_start(study)
    for name, text in facts.items():
        console.print(f"{name:9} {text}", soft_wrap=True, markup=False)
    console.print()
    console.print(_plan_table(plans, machine))
    if gpus:
        hours = sum(plan.epochs * plan.seconds_per_epoch for plan in plans if not plan.done) / 3600
        console.print(f"\nAn estimate, not measured: {hours:.1f} GPU-hours, if a GPU sustains {tflops:g} TFLOP/s on "
                      "these models (--tflops) and nothing waits for the images.", soft_wrap=True)
    elif any(plan.seconds_per_epoch is None for plan in plans) and not measure:
        console.print("\nTimes appear once epochs are on record, or with --measure, which times a few steps here.")


def _machine(study: Study, gpus: int | None) -> tuple[Share, str]:
    """What trials get where the study would run, and what that is in words."""
    resources = study.config.resources
    address = None if gpus else cluster_address(study.address)
    if address is None:
        machine = cluster_of(resources, gpus) if gpus else preflight.check_here(study)
        return machine, str(machine)
    with study.connected() as machine:
        return machine, f"{machine}; the cluster at {address}: {describe_machine()}"


def cluster_of(resources: ResourceSettings, gpus: int) -> Share:
    """The share on a machine with so many GPUs and enough CPUs for them."""
    wanted = resources.model_copy(update={"gpus_per_trial": resources.gpus_per_trial or 1.0})
    return share(wanted, [(float(resources.cpus_per_trial * gpus * 64), float(gpus))])


def _show_data(study: Study) -> str:
    splits = study.splits
    parts = [f"{study.config.data.source}: {len(splits.train)} training images"]
    if len(splits.student_train) < len(splits.train):
        parts[0] += f" ({len(splits.student_train)} of them for the student"
        parts[0] += f", {len(splits.unlabelled)} more without labels)" if splits.unlabelled else ")"
    size = splits.image_size
    parts += [f"{len(splits.validation)} validation", f"{len(splits.test)} test",
              f"{len(splits.class_names)} classes", f"{size}x{size} pixels"]
    duplicates = sum((splits.duplicates or {}).values())
    if duplicates:
        parts.append(f"{duplicates} duplicate{'s' if duplicates > 1 else ''} across splits ({splits.dropped} dropped "
                     "from training)")
    return ", ".join(parts)


def _show_start(study: Study) -> str:
    counts = [f"{study.prior_trials(arm)} {ARMS[arm]} trials" for arm in study.warm_started]
    return f"from {' and '.join(counts)} of {study.config.search.warm_start}, besides the study's own"


def _show_range(dimension) -> str:
    if dimension.choice is not None:
        return "{" + ", ".join(map(str, dimension.choice)) + "}"
    return f"{dimension.bounds[0]:g}..{dimension.bounds[1]:g}" + (" (log)" if dimension.log else "")


def _plan_table(plans: list[StagePlan], share: Share) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("stage", "runs", "never stopped", "epochs each", "epochs expected", "TFLOP", "time", ""):
        table.add_column(title, justify="left" if title in ("stage", "") else "right")
    total_flop, total_seconds = 0.0, 0.0
    for plan in plans:
        seconds = plan.recorded_seconds if plan.done else plan.seconds(share.concurrent)
        total_flop += 0 if plan.done else plan.flop
        total_seconds += 0 if plan.done else (math.nan if seconds is None else seconds)
        table.add_row(plan.name.replace("_", " "), str(plan.runs), str(plan.protected or "all"), str(plan.epochs_each),
                      f"{plan.epochs:,.0f}", f"{plan.flop / 1e12:,.3g}", "" if seconds is None else clock(seconds),
                      "done" if plan.done else "")
    shown = "" if math.isnan(total_seconds) else clock(total_seconds)
    table.add_row("left to do", "", "", "", "", f"{total_flop / 1e12:,.3g}", shown, "", style="bold")
    return table

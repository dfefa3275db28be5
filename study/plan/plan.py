"""What a study will do and what it will cost, before it does it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from kdstudy.analysis.study_files import ARMS
from kdstudy.config.settings import OUTPUTS, ResourceSettings, StudyConfig
from kdstudy.errors import MissingTeacherError
from kdstudy.plan import preflight
from kdstudy.plan.forecast import Forecast, Work, forecast
from kdstudy.stages.inputs import Stage
from kdstudy.stages.work import PIECES
from kdstudy.store.record import Record
from kdstudy.store.storage import Storage
from kdstudy.study import Study, describe_machine
from kdstudy.trainables import models
from kdstudy.trainables.settings import ModelSettings
from kdstudy.tune.cluster import Share, cluster_address, share
from kdstudy.watch.display import Display, clock

BACKWARD = 3  # forward and backward together cost about three forwards
MEASURED_STEPS = 3
MEASURED_BATCH = 32
# What a data-centre GPU sustains on models of this size is a small part of its peak; --tflops says otherwise.
ASSUMED_TFLOPS = 40.0
START_SECONDS = 12.0  # until workers are up, and for report and export: measured with digits on 2 CPU cores
END_SECONDS = 4.0


@dataclass(frozen=True)
class StagePlan:
    """One stage's work.

    epochs: of a run; a piece of the teacher's answers has views for epochs. seconds: of one, with its share of the
    reports, or None; estimated: from the number of its operations. took: seconds, where it is done. workers: that train
    one model together.
    """

    name: str
    runs: int
    protected: int
    epochs: float
    rungs: tuple[int, ...]
    images_per_epoch: int
    flop_per_image: float
    seconds: float | None
    overhead: float
    estimated: bool
    done: bool
    took: float | None = None
    workers: int = 1

    def work(self) -> Work:
        """For the schedule; where the cost of an epoch is not known, its number of operations stands for it."""
        seconds = self.images_per_epoch * self.flop_per_image if self.seconds is None else self.seconds
        if self.rungs:
            return Work(self.name, self.runs, self.protected, self.epochs, self.rungs, seconds, self.overhead)
        return Work(self.name, self.runs, self.runs, 1, (), seconds * self.epochs, self.overhead, self.workers)

    def flop(self, epochs: float) -> float:
        return epochs * self.images_per_epoch * self.flop_per_image


@dataclass(frozen=True)
class Pace:
    """Seconds of an epoch, and of a trial besides its epochs."""

    epoch: float
    overhead: float = 0.0


def make_plan(study: Study, measure: bool = False, flop_rate: float | None = None,
              only_gpu: bool = False) -> list[StagePlan]:
    """The stages that train or evaluate models. Costs per epoch come from the study's own records where there are any,
    from a few timed steps where `measure` asks for them, from an assumed `flop_rate` (operations a second), or else
    they are None. only_gpu: records count only where the trials ran on GPUs."""
    config, splits = study.config, study.splits
    student = BACKWARD * forward_flop(config.student, study)
    teacher = [forward_flop(settings, study) for settings in teacher_models(study)]
    paces = _paces(study, measure, flop_rate, only_gpu)
    known = paces.get("baseline") or paces.get("distill")
    overhead = known.overhead if known else 0.0

    def stage(name: str, runs: int, protected: int, epochs: float, images: int, flop: float,
              rungs: tuple[int, ...] = (), free: bool = False) -> StagePlan:
        pace = Pace(0.0) if free else paces.get(name)
        estimated, done = bool(flop_rate) and not pace, _is_done(study, name)
        workers = config.resources.teacher_workers if name == "teacher" else 1
        seconds = images * flop / flop_rate / workers if estimated else pace and pace.epoch
        return StagePlan(name, runs, protected, epochs, rungs, images, flop, seconds, overhead, estimated, done,
                         study.stage(name).done["seconds"] if done else None, workers)

    given, epochs, labelled = config.teacher.is_given, config.train.epochs, len(splits.student_train)
    runs = 0 if given else len(config.teacher.learning_rates)
    plans = [stage("teacher", runs, 0, config.teacher.epochs, len(splits.train), BACKWARD * sum(teacher), free=given),
             _search_plan(study, "baseline", student, stage)]
    views = len(study.view_seeds) * config.view_count if teacher and study.logits_fit else 0
    pieces = min(PIECES, config.view_count) * len(study.view_seeds) if views else 0
    plans.append(stage("teacher_logits", pieces, 0, views / pieces if pieces else 0, splits.seen_by_student,
                       sum(teacher), free=not pieces))
    # Images without labels come on top of every labelled batch wherever there is a soft loss.
    soft = student * (1 + config.data.unlabelled)
    plans.append(_search_plan(study, "distill", soft, stage))
    confirmed = 2 * config.confirm.seeds
    for name, runs, flop in (
            ("finalists_baseline", _finalist_runs(config, "baseline"), student),
            ("finalists", _finalist_runs(config, "distill"), soft),
            ("confirm_baseline", confirmed, student),
            ("confirm", confirmed + bool(config.shared_parameters) * config.confirm.seeds, soft)):
        if name in config.stages:
            plans.append(stage(name, runs, 0, epochs, labelled, flop))
    return plans


def _finalist_runs(config: StudyConfig, arm: str) -> int:
    """At most: the default point may be among the best."""
    return min(config.finalists.configurations + 1, config.trials(arm)) * config.finalists.seeds


def teacher_models(study: Study) -> list[ModelSettings]:
    """The models whose answers the student learns from; none where there is a file of logits."""
    if study.config.teacher.is_given:
        return [member.model for member in study.given_members]
    return [study.config.teacher.model_settings]


def _search_plan(study: Study, arm: str, flop: float, stage: Callable[..., StagePlan]) -> StagePlan:
    config, trials = study.config, study.config.trials(arm)
    return stage(arm, trials, min(trials, config.protected(arm) + 1), config.train.epochs,
                 len(study.splits.student_train), flop, tuple(config.rungs))


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


def _paces(study: Study, measure: bool, flop_rate: float | None, only_gpu: bool) -> dict[str, Pace]:
    """What is known of how long an epoch takes, by stage: from its record, else from that of a stage that trains the
    same model, else from timed steps where `measure` asks for them."""
    recorded = {name: pace for name in study.config.stages
                if name not in OUTPUTS and (pace := _recorded_pace(study, name, only_gpu))}
    paces, more = dict(recorded), 1 + study.config.data.unlabelled
    workers = {"teacher": study.config.resources.teacher_workers}
    if measure:
        for name in ("teacher", "baseline"):
            if name not in paces and not (name == "teacher" and study.config.teacher.is_given):
                paces[name] = Pace(_measure(study, name) / workers.get(name, 1))
    if student := paces.get("baseline"):
        for name in ("finalists_baseline", "confirm_baseline"):
            paces.setdefault(name, student)
        for name in ("distill", "finalists", "confirm"):
            paces.setdefault(name, recorded.get("distill") or Pace(student.epoch * more, student.overhead))
    if (teacher := paces.get("teacher")) and not flop_rate:
        share = study.splits.seen_by_student / len(study.splits.train)
        paces.setdefault("teacher_logits", Pace(workers["teacher"] * teacher.epoch / BACKWARD * share))
    return paces


def _recorded_pace(study: Study, name: str, only_gpu: bool) -> Pace | None:
    """Medians over what is on record: of the time between reports, and of what a trial takes besides."""
    stage = _stage(study, name)
    if stage is None or not stage.record_path.exists():
        return None
    trials = [trial for trial in Record(stage.record_path, write=False).trials.values() if trial.reports
              and not (only_gpu and " gpu " not in (trial.where or ""))]
    if name == "teacher_logits":
        views = [(trial.reports[0]["time"] - trial.begun) / trial.parameters["view_count"] for trial in trials
                 if trial.parameters["view_count"]]
        return Pace(statistics.median(views)) if views else None
    paces = [(after["time"] - before["time"]) / (after["epoch"] - before["epoch"]) for trial in trials
             for before, after in pairwise(trial.reports) if after["epoch"] > before["epoch"]]
    if not paces:
        return None
    pace = statistics.median(paces)
    besides = [trial.reports[0]["time"] - trial.begun - pace * trial.reports[0]["epoch"] for trial in trials]
    return Pace(pace, max(0.0, statistics.median(besides)))


def _measure(study: Study, name: str) -> float:
    """Seconds per epoch, with its share of the reports, from a few steps on a few images here."""
    from kdstudy.trainables.task import start

    task = study.task(name)
    few = task.train.take(torch.arange(min(MEASURED_BATCH, len(task.train), task.training.batch_size)).numpy())
    seen = task.validation.take(torch.arange(min(MEASURED_BATCH, len(task.validation))).numpy())
    training = start(replace(task, train=few, validation=seen), {"lr": 1e-4}, seed=0, view_seed=0)
    training.run(1)
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        training.train_epoch()
    trained = time.perf_counter()
    training.validation.report(training.model, training.autocast)
    reported = (time.perf_counter() - trained) / len(seen) * len(task.validation)
    return (trained - started) / MEASURED_STEPS / len(few) * len(task.train) + reported / task.report_every


def show_plan(config: StudyConfig, storage: Storage, console: Console, measure: bool, gpus: int | None = None,
              tflops: float = ASSUMED_TFLOPS, address: str | None = None) -> None:
    """Print the plan, for this machine, for the cluster at `address` or in RAY_ADDRESS, or, as an estimate, for `gpus`
    GPUs that each do `tflops` 10^12 operations a second. Raises UserError where the study cannot work there."""
    storage.refresh(everything=True)  # done-marks vouch for all files
    study = Study(config, storage, Display(console, config.stages), address)
    study.check(machine=not gpus)
    machine, described = _machine(study, gpus)
    plans = make_plan(study, measure and not gpus, tflops * 1e12 if gpus else None, only_gpu=bool(gpus))
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
        "place": str(storage),
    }
    if study.warm_started:
        facts["start"] = _show_start(study)
    for name, text in facts.items():
        console.print(f"{name:9} {text}", soft_wrap=True, markup=False)
    console.print()
    _show_times(console, config, plans, machine)
    if gpus:
        console.print(f"An estimate, not measured: if a GPU sustains {tflops:g} TFLOP/s on these models (--tflops) and "
                      "nothing waits for the images." if any(plan.estimated for plan in plans) else
                      "Times of an epoch are those on record.", soft_wrap=True)
    elif any(plan.seconds is None for plan in plans) and not measure:
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


def _show_times(console: Console, config: StudyConfig, plans: list[StagePlan], machine: Share) -> None:
    """The table, and what the whole comes to."""
    timed = all(plan.seconds is not None for plan in plans)
    works = [plan.work() for plan in plans]
    whole = forecast(works, machine.concurrent, config.search.reduction_factor, START_SECONDS)
    console.print(_plan_table(plans, whole, timed))
    left = [plan for plan in plans if not plan.done]
    flop = sum(plan.flop(_expected(plan, whole)) for plan in left)
    console.print(f"\nleft to do: {flop / 1e12:,.3g} TFLOP" if left else "\nleft to do: nothing")
    if not timed:
        return
    console.print(f"from beginning to end: {_show_forecast(whole, machine)}", soft_wrap=True)
    if left and len(left) < len(plans):
        rest = forecast([plan.work() for plan in left], machine.concurrent, config.search.reduction_factor,
                        START_SECONDS)
        console.print(f"from now on: {_show_forecast(rest, machine)}", soft_wrap=True)


def _show_forecast(expected: Forecast, machine: Share) -> str:
    wall = expected.wall + END_SECONDS
    share = expected.used / (machine.concurrent * wall)
    shown = f"about {clock(wall)}, {100 * share:.0f} % of {machine.concurrent} slots in use"
    if not machine.gpus:
        return shown
    gpus = machine.concurrent * machine.gpus
    return f"{shown}; {gpus * wall / 3600:.2g} GPU-hours on {gpus:g} GPUs, {machine.gpus * expected.used / 3600:.2g} " \
           "of them in use"


def _expected(plan: StagePlan, whole: Forecast) -> float:
    """Epochs of all its runs."""
    return whole.epochs[plan.name] if plan.rungs else plan.runs * plan.epochs


def _plan_table(plans: list[StagePlan], whole: Forecast, timed: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("stage", "runs", "never stopped", "epochs each", "epochs expected", "TFLOP", "begins", "takes", ""):
        table.add_column(title, justify="left" if title in ("stage", "") else "right")
    for plan in plans:
        begins, ends = whole.times[plan.name]
        times = (clock(begins), clock(ends - begins)) if timed else ("", "")
        expected = _expected(plan, whole)
        table.add_row(plan.name.replace("_", " "), str(plan.runs), str(plan.protected or "all"), f"{plan.epochs:.3g}",
                      f"{expected:,.0f}", f"{plan.flop(expected) / 1e12:,.3g}", *times,
                      f"done, took {clock(plan.took)}" if plan.done else "")
    return table

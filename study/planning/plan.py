"""`kdstudy plan`: print what a study will do and cost."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdstudy.analysis.number_text import counted
from kdstudy.config.sections import ARMS, Range, ResourceSettings
from kdstudy.config.settings import StudyConfig
from kdstudy.config.teachers import OTHERS
from kdstudy.planning import preflight
from kdstudy.planning.estimate import ModelSizes, StagePlan, make_plan
from kdstudy.planning.forecast import Forecast, forecast
from kdstudy.stages.context import Context
from kdstudy.stages.order import priority
from kdstudy.stages.teacher import TeacherStage
from kdstudy.store.fingerprints import changed
from kdstudy.study import Study
from kdstudy.trainables.settings import HOW_LOGITS_ARE_KEPT, ViewSettings
from kdstudy.tune.cluster import Share, cluster_address, describe_machine, share
from kdstudy.tune.connection import checked
from kdstudy.watch.console import print_columns, print_prose
from kdstudy.watch.display import clock

# A data-centre GPU sustains only a small part of its peak on models of this size; override with --tflops.
ASSUMED_TFLOPS = 40.0
START_SECONDS = 12.0  # to start the workers; both times are measured with digits on 2 CPU cores
ENOUGH_TEACHERS = 5
END_SECONDS = 4.0  # to write the report and the export


def show_plan(study: Study, console: Console, measure: bool = False, gpus: int | None = None,
              tflops: float = ASSUMED_TFLOPS, address: str | None = None) -> list[StagePlan]:
    """Print the plan for this machine, for the cluster at `address` or RAY_ADDRESS, or an estimate for `gpus` GPUs that
    each sustain `tflops` TFLOP/s.

    Returns the plans of the stages. Raises UserError if the study cannot run there."""
    config = study.config
    study.storage.refresh(everything=True)  # a done-mark is valid only if all its files exist
    preflight.check_settings(study, address, machine=not gpus)
    machine, described = machine_for(study, console, address, gpus)
    plans = make_plan(study, measure and not gpus, tflops * 1e12 if gpus else None, only_gpu=bool(gpus))
    sizes = ModelSizes.of(study.context)
    student, logits = sizes.parameters(study.context.model("student")), study.context.stage("teacher_logits")
    print_prose(console, f"[bold]{config.name}[/bold]  {escape(config.about)}\n", markup=True)
    facts = {
        "data": _show_data(study, sizes),
        **{stage.name: _show_teacher(stage, sizes) for stage in study.teachers},
        "student": f"{config.student.model}, {student:,} parameters" + _show_smaller(study, sizes, student)
                   + _show_weights(sizes, study.context, "student"),
        "training": _show_training(config),
        **({} if logits.is_given else {
            "logits": f"of the teacher: {logits.show_size(logits.fits)}{logits.show_remedy()}"}),
        **({"views": _show_views(config.views)} if config.views.augment != "none" else {}),
        "searched": ", ".join(f"{name} {_show_range(range_)}" for name, range_ in config.space("distill").items())
                    or "nothing: the default point alone; give ranges in [search], e.g. lr = {log = [1e-4, 1e-2]}",
        "stopping": _show_stopping(config),
        "parallel": _show_parallel(config, machine),
        "machine": described,
        "storage": str(study.storage),
    }
    if len(looks := config.confirm.looks) > 1:
        facts["looks"] = (f"at {', '.join(map(str, looks[:-1]))} and {looks[-1]} seeds; what follows is for all "
                          f"{looks[-1]}, but the study may stop earlier")
    if config.teacher.replicates > 1:
        facts["teachers"] = _show_teachers(config.teacher.replicates)
    if started := _show_start(study):
        facts["start"] = started
    for name, text in facts.items():
        print_columns(console, [(name, text)], widths=(max(9, *map(len, facts)),))
    for text in study.notes:
        print_prose(console, f"note: {text}")
    console.print()
    _show_times(console, config, plans, machine)
    if gpus:
        print_prose(console, f"An estimate, not measured: assumes that a GPU sustains {tflops:g} TFLOP/s on "
                             "these models (--tflops) and that nothing waits for images."
                    if any(plan.estimated for plan in plans) else "Epoch times come from the records.")
    elif any(plan.seconds is None for plan in plans) and not measure:
        console.print("\nTimes appear once epochs have been recorded, or with --measure, which times a few steps here.")
    return plans


def machine_for(study: Study, console: Console, address: str | None, gpus: int | None) -> tuple[Share, str]:
    """Return each trial's share where the study would run, and a description of it."""
    resources = study.config.resources
    cluster = None if gpus else cluster_address(address)
    if cluster is None:
        machine = machine_of(resources, gpus) if gpus else preflight.check_here(study)
        return machine, str(machine)

    def note(text: str) -> None:
        print_prose(console, f"note: {text}")

    with checked(address, resources, preflight.cluster_checks(study), note) as (machine, _):
        return machine, f"{machine}; the cluster at {cluster}: {describe_machine()}"


def machine_of(resources: ResourceSettings, gpus: int) -> Share:
    """Return each trial's share on a machine with this many GPUs and enough CPUs."""
    wanted = resources.model_copy(update={"gpus_per_trial": resources.gpus_per_trial or 1.0})
    return share(wanted, [(float(resources.cpus_per_trial * gpus * 64), float(gpus))])


def _show_data(study: Study, sizes: ModelSizes) -> str:
    splits = study.context.splits
    parts = [f"{study.config.data.source}: {len(splits.train)} training images"]
    if len(splits.student_train) < len(splits.train):
        parts[0] += f" ({len(splits.student_train)} of them for the student"
        parts[0] += f", {len(splits.unlabelled)} more without labels)" if splits.unlabelled else ")"
    size = splits.image_size
    parts += [f"{len(splits.validation)} validation", f"{len(splits.test)} test",
              f"{len(splits.class_names)} classes", f"{size}x{size} pixels{_show_seen(study, sizes)}"]
    duplicates = sum((splits.duplicates or {}).values())
    if duplicates:
        parts.append(f"{duplicates} duplicate{'s' if duplicates > 1 else ''} across splits ({splits.dropped} dropped "
                     "from training)")
    return ", ".join(parts)


def _show_seen(study: Study, sizes: ModelSizes) -> str:
    """Describe the models' input sizes if they differ from the size of the stored images."""
    models = [(stage.name, model) for stage in study.teachers for model in stage.models]
    seen = {(name, sizes.image_size(model)) for name, model in [*models, ("student", study.config.student)]}
    others = sorted((name, size) for name, size in seen if size != study.context.splits.image_size)
    return f" ({', '.join(f'{_the(name)} sees {size}x{size}' for name, size in others)})" if others else ""


def _the(model: str) -> str:
    return model if "." in model else f"the {model}"


def _show_teacher(stage: TeacherStage, sizes: ModelSizes) -> str:
    parameters = sum(map(sizes.parameters, stage.models))
    return (stage.settings.title + stage.parts_read
            + (f", {parameters:,} parameters" if parameters else ", given as logits")
            + (_show_normalised(stage.shown_normalisation) if stage.is_given else
               _show_weights(sizes, stage.context, stage.section)))


def _show_smaller(study: Study, sizes: ModelSizes, student: int) -> str:
    """How many times smaller the student is than each of the teachers whose models are known."""
    teachers = [sum(map(sizes.parameters, stage.models)) for stage in study.teachers]
    shown = " and ".join(f"{teacher / student:.1f}x" for teacher in teachers if teacher)
    return f", {shown} smaller" if shown else ""


def _show_weights(sizes: ModelSizes, context: Context, section: str) -> str:
    """Say which file a model's training begins with, and with which mean and std its images are normalised."""
    return context.show_weights(section) + _show_normalised(sizes.normalisation(context.model(section)))


def _show_normalised(words: str) -> str:
    return f", images normalised with {words}" if words else ""


def _show_training(config: StudyConfig) -> str:
    """The training settings that are not the defaults, and how many epochs there are."""
    trained = {"student": config.train}
    trained |= {section.replace(OTHERS, "teacher"): teacher.train_settings
                for section, teacher in config.used_teachers.items() if not teacher.is_given}
    parts = []
    for name, settings in trained.items():
        others = [f"{setting} {value}" for setting, value in changed(settings, exclude=("epochs",)).items()]
        parts.append(f"{name}: {', '.join([counted(settings.epochs, 'epoch'), *others])}")
    return "; ".join(parts)


def _show_views(views: ViewSettings) -> str:
    """Spell out what a preset of the augmentation stands for."""
    given = changed(views.written_out, exclude=("count", *HOW_LOGITS_ARE_KEPT))
    shown = [f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in given.items()]
    return f"{views.augment}: {', '.join(shown)}"


def _show_teachers(number: int) -> str:
    text = f"{number} that differ in their seed; the further ones begin their students once the confirmation is done"
    if number >= ENOUGH_TEACHERS:
        return text
    return (f"{text}. Fewer than {ENOUGH_TEACHERS} give wide intervals: {number} leave {counted(number - 1, 'degree')} "
            "of freedom for how teachers differ")


def _show_start(study: Study) -> str | None:
    counts = [f"{search.prior_trials()} {ARMS[search.arm]} trials" for search in study.searches
              if search.is_warm_started]
    if not counts:
        return None
    return f"from {' and '.join(counts)} of {study.config.search.warm_start}, besides the study's own"


def _show_stopping(config: StudyConfig) -> str:
    if config.rungs:
        return (f"below the best 1/{config.search.reduction_factor} at epoch {', '.join(map(str, config.rungs))} of "
                f"{config.train.epochs}")
    if not config.search.early_stopping:
        return "none"
    return (f"none: before 70 % of {config.train.epochs} epochs there is no rung after the warm-up and the epochs in "
            "which only the head learns; search.grace_period can set an earlier one")


def _show_parallel(config: StudyConfig, machine: Share) -> str:
    """Say how many trials of a search run at a time, and whether that leaves slots idle."""
    parallel = config.search.parallel
    text = f"a search keeps up to {parallel} trials open, once its protected trials have begun"
    if parallel >= config.search.trials:
        return f"{text}; search.parallel should be well below search.trials: no trial can use another's result"
    if machine.concurrent <= parallel:
        return text
    return (f"{text}: fewer than the {machine.concurrent} slots. search.parallel = {2 * machine.concurrent} would keep "
            "them busy, but each trial would be proposed from fewer results")


def _show_range(dimension: Range) -> str:
    if dimension.choice is not None:
        return "{" + ", ".join(map(str, dimension.choice)) + "}"
    return f"{dimension.bounds[0]:g}..{dimension.bounds[1]:g}" + (" (log)" if dimension.log else "")


def _show_times(console: Console, config: StudyConfig, plans: list[StagePlan], machine: Share) -> None:
    """Print the table of stages and the totals."""
    timed = all(plan.seconds is not None for plan in plans)
    ordered = sorted(plans, key=lambda plan: priority(plan.name))
    works = [plan.work() for plan in ordered]
    whole = forecast(works, machine.concurrent, config.search.reduction_factor, START_SECONDS)
    console.print(_plan_table(plans, whole, timed))
    left = [plan for plan in plans if not plan.done]
    for plan in ordered:
        if plan.retries:
            print_prose(console, f"{plan.name}: `kdstudy run` tries the trials whose workers died again")
    flop = sum(plan.flop(expected_epochs(plan, whole)) for plan in left)
    console.print(f"\nleft to do: {flop / 1e12:,.3g} TFLOP" if left else "\nleft to do: nothing")
    if not timed:
        return
    print_prose(console, f"from beginning to end: {show_forecast(whole, machine)}")
    if left and len(left) < len(plans):
        rest = forecast([plan.work() for plan in ordered if not plan.done], machine.concurrent,
                        config.search.reduction_factor, START_SECONDS)
        print_prose(console, f"from now on: {show_forecast(rest, machine)}")


def show_forecast(expected: Forecast, machine: Share) -> str:
    return show_use(expected.wall + END_SECONDS, expected.used, machine)


def show_use(wall: float, used: float, machine: Share) -> str:
    """Wall time, and how much of the machine is in use meanwhile. used: slot-seconds."""
    share = used / (machine.concurrent * wall)
    shown = f"about {clock(wall)}, {100 * share:.0f} % of {machine.concurrent} slots in use"
    if not machine.gpus:
        return shown
    gpus = machine.concurrent * machine.gpus
    hours, used_hours = gpus * wall / 3600, machine.gpus * used / 3600
    return f"{shown}; {hours:.2g} GPU-hours on {gpus:g} GPUs, {used_hours:.2g} of them in use"


def expected_epochs(plan: StagePlan, whole: Forecast) -> float:
    """Return the expected epochs of a stage, summed over its runs."""
    return whole.epochs[plan.name] if plan.load.rungs else plan.load.runs * plan.load.epochs


def _plan_table(plans: list[StagePlan], whole: Forecast, timed: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("stage", "runs", "never stopped", "epochs each", "epochs expected", "TFLOP", "begins", "takes", ""):
        table.add_column(title, justify="left" if title in ("stage", "") else "right")
    for plan in plans:
        begins, ends = whole.times[plan.name]
        times = (clock(begins), clock(ends - begins)) if timed else ("", "")
        expected = expected_epochs(plan, whole)
        table.add_row(plan.name.replace("_", " "), str(plan.load.runs), str(plan.load.protected or "all"),
                      f"{plan.load.epochs:.3g}",
                      f"{expected:,.0f}", f"{plan.flop(expected) / 1e12:,.3g}", *times,
                      f"done, took {clock(plan.took)}" if plan.done else "")
    return table

"""Commands that train or estimate the cost of training: run, plan, train."""

import contextlib
import math
from pathlib import Path

import click
from rich.markup import escape

from kdstudy.cli.console import print_results, stoppable
from kdstudy.cli.group import cli
from kdstudy.cli.options import LocalPath, address_option, study_options, trust_option
from kdstudy.cli.resolve import resolve, resolve_series
from kdstudy.cli.series import plan_series, run_series
from kdstudy.config.load import check_parameter
from kdstudy.config.permission import TRAINED
from kdstudy.config.series import studies_of
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.stages.order import LISTED, NAMES, REPORTED, names, up_to
from kdstudy.study import Study
from kdstudy.trainables.losses import PARAMETERS
from kdstudy.watch.console import make_console, print_prose
from kdstudy.watch.display import Display


@cli.command()
@study_options
@click.option("--until", default=NAMES[-1], metavar="STAGE",
              help=f"Stop after this stage: {', '.join(LISTED)}. Further teachers have numbers: teacher_3 and so on; "
                   "those of search.teacher names: teacher.NAME and teacher_logits.NAME.")
@address_option
@trust_option
def run(study: str, overrides: tuple[str, ...], location: str | None, smoke: bool, until: str,
        address: str | None, trust: bool) -> None:
    """Run or resume a study.

    Trains the teacher, tunes the baseline, searches the distillation parameters, compares finalists on fresh seeds,
    confirms the winners on fresh seeds, then writes the report and exports the best student.

    Run the same command again to resume an interrupted study. Finished work is never repeated.

    A list for train.epochs, data.student_images or teacher.epochs, such as --set train.epochs='[75, 150, 300]', runs a
    study for each value and shows how the gain changes.
    """
    if (series := resolve_series(study, overrides, location, smoke, trust, (*TRAINED, "watch"))) is not None:
        up_to(studies_of(series.series)[0], until)
        run_series(series, make_console(), until, address)
        return
    config, storage = resolve(study, overrides, location, smoke, trust, (*TRAINED, "watch"))
    up_to(config, until)
    console = make_console()
    print_prose(console, f"[bold]{config.name}[/bold]  {escape(config.about)}", markup=True)
    with stoppable(str(storage)):
        with console.status("reading settings and data") if console.is_terminal else contextlib.nullcontext():
            from kdstudy import driver  # Ray and torch take seconds to import
        did_work = driver.run(Study(config, storage), Display(console, names(config)), until=until, address=address)
    if not did_work:
        console.print(f"Nothing to do: {storage} is complete{'' if until == NAMES[-1] else f' up to {until}'}.",
                      markup=False)
    if until in REPORTED:
        print_results(console, storage)


@cli.command()
@study_options
@click.option("--measure", is_flag=True, help="Time a few training steps on this machine for the estimate.")
@address_option
@click.option("--gpus", type=click.IntRange(1, 1_000_000), metavar="N",
              help="Estimate for N GPUs instead of this machine or cluster.")
@click.option("--tflops", type=click.FloatRange(0.001, 1_000_000), default=40.0, show_default=True,
              help="Sustained TFLOP/s of each of the --gpus.")
@trust_option
def plan(study: str, overrides: tuple[str, ...], location: str | None, smoke: bool, measure: bool,
         address: str | None, gpus: int | None, tflops: float, trust: bool) -> None:
    """Show what a study will do and cost, without starting it.

    Prints the stages, trials, rungs, expected epochs, resources, floating-point operations and, where known, times.
    Also checks that the study can run: the settings, this machine or, on a cluster, every node."""
    if gpus and address:
        raise UserError("--gpus estimates for GPUs that you do not have, --address for a running cluster; leave one "
                        "of them out")
    if math.isnan(tflops):
        raise UserError("--tflops nan is not a number")
    if (series := resolve_series(study, overrides, location, smoke, trust)) is not None:
        plan_series(series, make_console(), measure, gpus, tflops, address)
        return
    config, storage = resolve(study, overrides, location, smoke, trust)
    from kdstudy.planning.plan import show_plan  # imports Ray and torch

    show_plan(Study(config, storage), make_console(), measure, gpus, tflops, address)


@cli.command()
@click.argument("loop", type=click.Choice(["teacher", "baseline", "distill"]))
@study_options
@click.option("--lr", type=float, help="Learning rate.  [default: the study's]")
@click.option("--temperature", type=float, help="Temperature T of the soft loss.  [default: the study's]")
@click.option("--alpha", type=float, help="Weight of the soft loss, 0 to 1.  [default: the study's]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), metavar="N",
              help="Seed of the initial weights, image order and views.  [default: as in the search's first trial]")
@click.option("--out", type=LocalPath(path_type=Path), metavar="FOLDER",
              help="Output folder for weights and history.  [default: train/LOOP in the study folder]")
@trust_option
def train(loop: str, study: str, overrides: tuple[str, ...], location: str | None, smoke: bool, lr: float | None,
          temperature: float | None, alpha: float | None, seed: int | None, out: Path | None, trust: bool) -> None:
    """Train one model without a search.

    \b
    kdstudy train teacher STUDY
    kdstudy train baseline STUDY --lr 3e-4
    kdstudy train distill STUDY --temperature 4 --alpha 0.5 --lr 3e-4
    """
    config, storage = resolve(study, overrides, location, smoke, trust)
    parameters = _loop_parameters(config, loop, lr=lr, temperature=temperature, alpha=alpha)
    from kdstudy import train as training  # imports torch

    training.train(config, storage, loop, parameters, make_console(), seed=seed, out=out)


def _loop_parameters(config: StudyConfig, loop: str, **given: float | None) -> dict[str, float]:
    """Return a loop's parameters: the study's default point, updated from the command line. Raises UserError."""
    if loop == "teacher":
        defaults = {"lr": config.teacher.learning_rates[0]}
    else:
        defaults = config.default_parameters("distill" if loop == "distill" else "baseline")
    for name, value in given.items():
        if value is None:
            continue
        if name not in defaults and name in PARAMETERS and loop == "distill":
            raise UserError(f"--{name} does not apply: default.loss = {config.default.loss!r} has no such parameter")
        if name not in defaults:
            raise UserError(f"--{name} does not apply to the {loop} loop, only to `kdstudy train distill`")
        check_parameter(name, value)
        defaults[name] = value
    section = "teacher" if loop == "teacher" else "train"
    if defaults["lr"] < (floor := getattr(config, section).min_lr):
        raise UserError(f"--lr = {defaults['lr']:g} is below {section}.min_lr = {floor:g}, at which the schedule ends")
    return defaults

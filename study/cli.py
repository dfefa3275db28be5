"""The kdstudy command."""

import contextlib
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from study.config import (
    STAGE_NAMES,
    STUDY_FILE,
    StudyConfig,
    check_parameter,
    functions_in,
    load_study,
    own_functions,
    places_named,
    preset_names,
    texts_in,
    values_named,
)
from study.errors import InterruptedStudyError, StudyFailedError, UserError
from study.home import Home
from trainables import functions
from trainables.credentials import is_secret_name, redact
from trainables.messages import one_line

LOG_WIDTH = 140
MODELS = ("teacher", "student")  # the sections that may name a function
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LocalPath(click.Path):
    """Something to be written on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            raise UserError(f"{value} is a URI, but this command writes to this machine: name a file or folder here, "
                            "and copy it there with the store's own client")
        return super().convert(value, param, ctx)


def study_options(command: Callable) -> Callable:
    """STUDY and the options that every command takes that works on one."""
    for decorate in (
        click.option("--smoke", is_flag=True, help="Shrink the study: a few short trials, two seeds."),
        click.option("--dir", "place", metavar="PLACE",
                     help="Where the study lives: a folder, or a URI such as s3://BUCKET/studies/NAME.  "
                          "[default: studies/NAME]"),
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help="Change a setting, e.g. --set search.trials=40. May be given several times."),
        click.argument("study", metavar="STUDY"),
    ):
        command = decorate(command)
    return command


trust_option = click.option("--trust", is_flag=True,
                            help="Call the functions that a study's folder names as its models, and send its curves "
                                 "where it says: code and places that whoever made it has chosen.")
address_option = click.option("--address", metavar="ADDRESS",
                              help="A running Ray cluster's address.  [default: RAY_ADDRESS, or local]")


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="kdstudy", prog_name="kdstudy")
@click.pass_context
def cli(context: click.Context) -> None:
    """Does knowledge distillation help my student, with which temperature, alpha and learning rate, and am I sure?

    STUDY is a preset's name (see `kdstudy presets`), a TOML file, or the folder or URI of a study.

    \b
    kdstudy run digits            a whole study, in about four minutes on two CPU cores
    kdstudy plan STUDY            what a study will do, before it does it
    kdstudy status FOLDER         how far it is
    """
    context.with_resource(functions.only_allowed())


@cli.command()
@study_options
@click.option("--until", type=click.Choice(STAGE_NAMES), default=STAGE_NAMES[-1], metavar="STAGE",
              help=f"Stop after a stage: {', '.join(STAGE_NAMES)}.")
@address_option
@trust_option
def run(study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, until: str,
        address: str | None, trust: bool) -> None:
    """Run a study, or go on with one.

    Teacher, tuned baseline, distillation search, finalists if asked for, confirmation on fresh seeds, report, exported
    student.

    Run the same command again to go on where it was cut off. What is done is not done again.
    """
    config, home = _resolve(study, overrides, place, smoke, trust, (*MODELS, "watch"))
    console = _console()
    console.print(f"[bold]{config.name}[/bold]  {escape(config.about)}", soft_wrap=True)
    with _stoppable(str(home)):
        with console.status("reading settings and data") if console.is_terminal else contextlib.nullcontext():
            from study.display import Display
            from study.stages import Study
        work = Study(config, home, Display(console, config.stages), address)
        work.run(until)
    if not work.did_work:
        console.print(f"Nothing to do: {home} is complete{'' if until == STAGE_NAMES[-1] else f' up to {until}'}.",
                      markup=False)
    if until in ("report", "export"):
        _print_results(console, home)


@cli.command()
@study_options
@click.option("--measure", is_flag=True, help="Time a few training steps on this machine.")
@address_option
@click.option("--gpus", type=click.IntRange(1, 1_000_000), metavar="N", help="Estimate the time on N GPUs instead.")
@click.option("--tflops", type=click.FloatRange(0.001, 1_000_000), default=40.0, show_default=True,
              help="What each of them sustains, in TFLOP/s.")
@trust_option
def plan(study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, measure: bool,
         address: str | None, gpus: int | None, tflops: float, trust: bool) -> None:
    """Show what a study will do and cost; start nothing.

    Stages, trials, rungs, expected epochs, resources, floating-point operations and, where they are known, times. It
    looks for what could not work: of a cluster, on every node."""
    if gpus and address:
        raise UserError("--gpus estimates for GPUs that are not there, --address speaks of a cluster that is; leave "
                        "one of them out")
    if math.isnan(tflops):
        raise UserError("--tflops nan is not a number")
    config, home = _resolve(study, overrides, place, smoke, trust)
    from study.plan import show_plan

    show_plan(config, home, _console(), measure, gpus, tflops, address)


@cli.command()
@click.argument("study", metavar="STUDY")
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--follow", is_flag=True, help="Go on until no driver works on it.")
@click.option("--every", type=click.FloatRange(0.5, 86400), metavar="SECONDS",
              help="How often --follow looks.  [default: 5; 30 at a URI]")
def status(study: str, place: str | None, follow: bool, every: float | None) -> None:
    """Show how far a study is, also while it runs.

    From any machine that reads where it lives. Per stage: trials, the best of them, how fast they go on and how long
    they will take; then what failed. --follow draws it anew in place; in a log it prints a line when something changes.
    It ends with exit code 0 once the study is done, with 1 where its driver has gone before.
    """
    if every is not None and (math.isnan(every) or not follow):
        raise UserError(f"--every {every:g} is not a number" if follow else "--every means nothing without --follow")
    home = _resolve_begun(study, place)
    from study.status import follow_status, show_status

    if follow:
        follow_status(home, _console(), every)
    else:
        show_status(home, _console())


@cli.command()
@click.argument("studies", metavar="STUDY...", nargs=-1, required=True)
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--readme", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Also rewrite what stands between <!-- kdstudy results: NAME --> and <!-- end of kdstudy results: "
                   "NAME --> in a Markdown file.")
@click.option("--images", type=click.Choice(["svg", "png"]),
              help="Also write each figure as a file, to results/images; needs kdstudy[images] and Chromium or Chrome.")
@click.option("--compare", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where the page that compares several studies goes.  [default: comparison.html]")
def report(studies: tuple[str, ...], place: str | None, readme: Path | None, images: str | None,
           compare: Path | None) -> None:
    """Rebuild the results table and the report.

    Also while a study runs, from what is there. Needs neither Ray nor torch. Several studies are also put side by side
    in a table of takeaways and on a page: what learned from what, and what distillation was worth."""
    if place and len(studies) > 1:
        raise UserError("--dir names the folder of one study; name the folders themselves instead of "
                        f"{' and '.join(studies)}")
    from analysis import comparison, tables
    from analysis import report as report_page
    from study.storage import read_json

    console, outcomes = _console(), []
    if compare and len(studies) == 1:
        raise UserError("--compare needs at least two studies; name the others too")
    homes = {home.folder: home for study in studies for home in (_resolve_started(study, place)[1],)}
    for folder, home in homes.items():
        with _fitting_together(home):
            report_page.build(folder)
        outcomes.append(read_json(folder / "results" / "results.json"))
        _print_results(console, home)
        if images:
            _write_images(console, folder, images)
        try:
            home.publish(folder / "results")
        except StudyFailedError as error:  # the page is here all the same
            console.print(f"note: {error}", soft_wrap=True, markup=False)
    if len(outcomes) > 1:
        names = comparison.distinct_names(outcomes, list(homes))
        console.print(f"\n{tables.takeaways(outcomes, names)}", soft_wrap=True, markup=False)
        compare = compare or Path("comparison.html")
        comparison.build(list(homes), compare)
        console.print(f"compared {compare}", soft_wrap=True, markup=False)
    if readme:
        _rewrite(readme, outcomes)


@contextlib.contextmanager
def _fitting_together(home: Home) -> Iterator[None]:
    """Turn what is found wrong with a study's files into one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"the files of {home} do not fit together: {' '.join(str(error).split())}") from None
    except FileNotFoundError as error:
        if not str(error.filename).startswith(str(home.folder)):
            raise
        raise UserError(f"{error.filename} is missing; restore it from a copy, or let `kdstudy run {home}` make it anew"
                        ) from None


def _write_images(console: Console, folder: Path, kind: str) -> None:
    from analysis import report as report_page
    from analysis.images import ImagesUnavailable, write_images

    out = folder / "results" / "images"
    try:
        paths = write_images(report_page.exhibits(folder), out, kind)
    except ImagesUnavailable as error:
        raise UserError(f"--images {kind}: {error}") from None
    console.print(f"images   {out} ({len(paths)} {kind})", soft_wrap=True, markup=False)


def _rewrite(readme: Path, outcomes: list[dict[str, Any]]) -> None:
    """Bring the blocks of a Markdown file up to date: the takeaways of several studies, and each study's own."""
    from analysis import tables

    blocks = {outcome["study"]: tables.markdown(outcome) for outcome in outcomes}
    if len(outcomes) > 1:
        blocks = {name: content for name, content in blocks.items() if tables.has_block(readme, name)}
        blocks[tables.TAKEAWAYS_BLOCK] = tables.takeaways(outcomes)
    try:
        changed = [name for name, content in blocks.items() if tables.rewrite_block(readme, name, content)]
    except ValueError as error:
        raise UserError(str(error)) from None
    click.echo(f"{readme}: rewrote {', '.join(changed)}" if changed else f"{readme} is up to date")


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path, dir_okay=False), metavar="OUT")
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Change a setting: --set data.source=PATH where the images have moved.")
@trust_option
def logits(study: str, out: Path, place: str | None, overrides: tuple[str, ...], trust: bool) -> None:
    """Write the teacher's logits as one file.

    Another study of the same images takes them as its teacher: --set teacher.model= --set teacher.logits=OUT. The
    format is described in study/logits_file.py."""
    config, home = _resolve_started(study, place, overrides, everything=True)
    _allow(config, study, overrides, trust, ("teacher",), home)
    from study import logits_file
    from study.display import Display, show_bytes
    from study.stages import Study

    with _fitting_together(home):
        size = logits_file.write(Study(config, home, Display(_console(), config.stages)), out)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--no-teacher", is_flag=True, help="Leave out the teacher's weights too.")
def pack(study: str, out: Path, place: str | None, no_teacher: bool) -> None:
    """Make a small copy of a study, to keep or to send.

    Without what can be computed again. OUT keeps the settings, the records, the results, every run's predictions, and
    the weights of the teacher and of the best student, so that `report` and `export` work on it. It leaves out the
    teacher's cached logits, the other weights, the Optuna files, and the names of the machines."""
    _, home = _resolve_started(study, place, everything=True)
    from study import packing
    from study.display import show_bytes

    with _fitting_together(home):
        size = packing.pack(home.folder, out, teacher=not no_teacher)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
              help="What to export: the best distilled student, or the teacher.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Change a setting: --set data.source=PATH where the images have moved.")
@trust_option
def export(study: str, out: Path, place: str | None, model: str, overrides: tuple[str, ...], trust: bool) -> None:
    """Write the best student as a folder for timm.

    The winner's configuration, first confirmation seed, last epoch, as safetensors with a config.json: OUT is loaded
    by timm.create_model("local-dir:OUT", pretrained=True)."""
    config, home = _resolve_started(study, place, overrides, everything=True)
    _allow(config, study, overrides, trust, (model,), home)
    from study import export as exporting

    write = exporting.export_teacher if model == "teacher" else exporting.export_student
    with _fitting_together(home):
        accuracy = write(config, home.folder, out)
    click.echo(f"{out}: {100 * accuracy:.2f} % test accuracy; its README.md says how to load it")


@cli.command()
@click.argument("loop", type=click.Choice(["teacher", "baseline", "distill"]))
@study_options
@click.option("--lr", type=float, help="Learning rate.  [default: the study's]")
@click.option("--temperature", type=float, help="Temperature T of the soft loss.  [default: the study's]")
@click.option("--alpha", type=float, help="Weight of the soft loss, 0 to 1.  [default: the study's]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), metavar="N",
              help="Of weights, order and views.  [default: that of the search's first trial]")
@click.option("--out", type=LocalPath(path_type=Path), metavar="FOLDER",
              help="Where weights and history go.  [default: FOLDER/train/LOOP]")
@trust_option
def train(loop: str, study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, lr: float | None,
          temperature: float | None, alpha: float | None, seed: int | None, out: Path | None, trust: bool) -> None:
    """Run one training loop, without a search.

    \b
    kdstudy train teacher STUDY
    kdstudy train baseline STUDY --lr 3e-4
    kdstudy train distill STUDY --temperature 4 --alpha 0.5 --lr 3e-4
    """
    config, home = _resolve(study, overrides, place, smoke, trust)
    parameters = _loop_parameters(config, loop, lr=lr, temperature=temperature, alpha=alpha)
    from study import train as training

    training.train(config, home, loop, parameters, _console(), seed=seed, out=out)


def _loop_parameters(config: StudyConfig, loop: str, **given: float | None) -> dict[str, float]:
    """What a loop takes: the study's default point, or what the command line says instead."""
    if loop == "teacher":
        defaults = {"lr": config.teacher.learning_rates[0]}
    else:
        defaults = config.default_parameters("distill" if loop == "distill" else "baseline")
    for name, value in given.items():
        if value is None:
            continue
        if name not in defaults:
            raise UserError(f"--{name} means nothing to the {loop} loop; it belongs to `kdstudy train distill`")
        check_parameter(name, value)
        defaults[name] = value
    return defaults


TARGETS = ("ray", "slurm", "kuberay")
# Options of `submit` that mean something to some of its targets only.
MEANT_FOR = {
    "address": ("ray",), "pip": ("ray",), "detach": ("ray",), "environment": ("ray", "kuberay"),
    "nodes": ("slurm",), "time": ("slurm",), "partition": ("slurm",), "account": ("slurm",), "sbatch": ("slurm",),
    "setup": ("slurm",), "image": ("kuberay",), "workers": ("kuberay",), "memory": ("kuberay",),
    "namespace": ("kuberay",), "env_from": ("kuberay",), "gpus_per_node": ("slurm", "kuberay"),
    "cpus_per_node": ("slurm", "kuberay"), "show": ("slurm", "kuberay"),
}


@cli.command()
@study_options
@click.option("--to", "target", type=click.Choice(TARGETS), default=TARGETS[0], show_default=True,
              help="A running Ray cluster, or a SLURM or Kubernetes one on which Ray is started.")
@click.option("--until", type=click.Choice(STAGE_NAMES), metavar="STAGE", help="Stop after a stage, as `run` does.")
@click.option("--address", metavar="URL",
              help="ray: the cluster's dashboard, http://HOST:8265.  [default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS]")
@click.option("--pip", is_flag=True, help="ray: install on the nodes what kdstudy needs, where their image lacks it.")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]",
              help="ray, kuberay: a variable for driver and workers, no secret; without a value, as it is here.")
@click.option("--detach", is_flag=True, help="ray: return at once instead of following the log.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="slurm: how many.")
@click.option("--time", default="24:00:00", show_default=True, help="slurm: the time limit.")
@click.option("--partition", help="slurm: where to.")
@click.option("--account", help="slurm: on whose account.")
@click.option("--sbatch", multiple=True, metavar="KEY[=VALUE]", help="slurm: any other option of sbatch.")
@click.option("--setup", multiple=True, metavar="LINE",
              help="slurm: a line of shell that brings kdstudy to the nodes.  [default: this virtual environment]")
@click.option("--image", metavar="NAME", help="kuberay: a container image with kdstudy and ray[default].")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="kuberay: pods besides the head.")
@click.option("--memory", default="32Gi", show_default=True, help="kuberay: of each pod.")
@click.option("--namespace", help="kuberay: of the job.")
@click.option("--env-from", multiple=True, metavar="SECRET", help="kuberay: a secret with variables for all pods.")
@click.option("--gpus-per-node", type=click.IntRange(1), metavar="N", help="slurm, kuberay: of each node or worker.")
@click.option("--cpus-per-node", type=click.IntRange(1), metavar="N",
              help="slurm, kuberay: of each node or worker.  [default: slurm all, kuberay 8]")
@click.option("--print", "show", is_flag=True, help="slurm, kuberay: print the script or the manifests instead.")
@trust_option
@click.pass_context
def submit(context: click.Context, study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, target: str,
           until: str | None, trust: bool, **options: Any) -> None:
    """Run a study on a cluster.

    \b
    kdstudy submit STUDY --address http://HEAD:8265 --dir URI          as a job of a Ray cluster that is up
    kdstudy submit STUDY --to slurm --dir PLACE --nodes 2              as a SLURM job
    kdstudy submit STUDY --to kuberay --dir URI --image NAME           as a RayJob of Kubernetes

    --dir is needed: an absolute path that all nodes share, or a URI. Submit a study again to go on where it was cut
    off.
    """
    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    for name in sorted(name for name in given if target not in MEANT_FOR[name]):
        option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
        raise UserError(f"{option} means nothing to --to {target}; it belongs to --to {' or '.join(MEANT_FOR[name])}")
    from study import launch

    config, home = _locate(study, overrides, place, smoke)
    _allow(config, study, overrides, trust, (*MODELS, "watch"))
    place = place or (str(home) if (home.folder / STUDY_FILE).is_file() else "")
    launch.check_place(place)
    launch.check_paths(config)
    _submit_to[target](config, place, until, options)


def _submit_to_ray(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    from study import submit as submitting

    submitting.submit(config, place, _console(), address=options["address"], until=until, pip=options["pip"],
                      environment=_variables(options["environment"]), detach=options["detach"])


def _submit_to_slurm(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    from study import slurm

    allocation = slurm.Allocation(*(options[name] for name in (
        "nodes", "gpus_per_node", "cpus_per_node", "time", "partition", "account", "sbatch")))
    content = slurm.script(config, place, allocation, until=until, setup=options["setup"])
    if options["show"]:
        click.echo(content, nl=False)
    else:
        slurm.submit(content, place, _console())


def _submit_to_kuberay(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    from study import kuberay

    pods = kuberay.Pods(options["image"] or "", options["workers"], options["cpus_per_node"] or kuberay.WORKER_CPUS,
                        options["gpus_per_node"], options["memory"], options["namespace"],
                        _variables(options["environment"]), options["env_from"])
    objects = kuberay.manifests(config, place, pods, until)
    if options["show"]:
        click.echo(kuberay.to_yaml(objects), nl=False)
    else:
        kuberay.submit(objects, place, _console())


_submit_to = {"ray": _submit_to_ray, "slurm": _submit_to_slurm, "kuberay": _submit_to_kuberay}


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    """Variables from NAME=VALUE, or from this environment for NAME. Raises UserError."""
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or (not equals and name not in os.environ):
            raise UserError(f"--env {name}: {name} is not set here; set it, or give --env {name}=VALUE"
                            if name.isidentifier() else f"--env {name}… is not of the form NAME=VALUE or NAME")
        if is_secret_name(name):
            raise UserError(f"--env {name} looks like a secret, and the job's description would show it; give it to "
                            "the pods with --env-from SECRET, or set it where Ray is started on the nodes")
        variables[name] = value if equals else os.environ[name]
    return variables


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "place", metavar="PLACE", help="Where the study lives.")
@click.option("--results", "results_only", is_flag=True,
              help="Without weights and logits: records, tables, the report and the exported student.")
def fetch(study: str, out: Path, place: str | None, results_only: bool) -> None:
    """Bring a study home, from a URI or a shared folder.

    Also while it runs. On the copy, OUT, all commands work as on the study; `run OUT` goes on with it there."""
    _, home = _resolve_started(study, place, everything=not results_only)
    from study import fetch as fetching
    from study.display import show_bytes

    size = fetching.fetch(home, out, results_only)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
def presets() -> None:
    """List the studies that come with kdstudy."""
    for name in preset_names():
        config = load_study(name)
        click.echo(f"{name:24} {config.about}")


@cli.command()
@click.argument("section", required=False, metavar="[SECTION]")
def settings(section: str | None) -> None:
    """List every setting of a study file with its default."""
    from study.config import settings_table

    sections = settings_table()
    if section and section not in sections:
        raise UserError(f"{section!r} is not a section; there are {', '.join(filter(None, sections))}")
    console = _console()
    for name, lines in sections.items():
        if section in (None, name):
            console.print(f"[{name}]" if name else "above all sections", style="bold", markup=False)
            for key, default, text in lines:
                console.print(f"  {key:20} {escape(default):20} {escape(text)}", soft_wrap=True)


def _resolve(study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, trust: bool,
             sections: tuple[str, ...] = MODELS) -> tuple[StudyConfig, Home]:
    """The settings and the home of a study. A started study's own settings hold unless overridden."""
    from study import schema

    config, home = _locate(study, overrides, place, smoke)
    _allow(config, study, overrides, trust, sections)
    if place is not None:
        home.refresh()
    schema.check(home.folder)
    return config, home


def _locate(study: str, overrides: tuple[str, ...], place: str | None,
            smoke: bool = False) -> tuple[StudyConfig, Home]:
    if "" in (study, place):
        raise UserError(f"{'--dir' if study else 'STUDY'} is empty; name a study folder, or leave it out")
    own = Home.of(study)
    if own.uri is not None:
        own.refresh()
        if not (own.folder / STUDY_FILE).is_file():
            raise UserError(f"{own} is no study yet; name a preset or a TOML file, and the URI with --dir")
        study = str(own.folder)
    config = load_study(study, overrides, smoke)
    if place is not None:
        return config, Home.of(place)
    started = (own.folder / STUDY_FILE).is_file() and not smoke
    return config, own if started else Home(Path("studies") / config.name)


def _allow(config: StudyConfig, study: str, overrides: tuple[str, ...], trust: bool, sections: tuple[str, ...],
           home: Home | None = None) -> None:
    """Allow the functions that the user names: in a TOML file or --set on this command line, or by --trust.

    sections: those whose models the command builds, and `watch` where it sends curves. home: where `config` comes from,
    if not from `study`. Raises UserError where a study's folder or URI, which may come from anybody, names another
    function, or a host to ask or tell.
    """
    source, values = home or study, values_named(study, overrides)
    own = functions_in(values)
    named = {setting: name for setting, name in own_functions(config).items() if setting.split(".")[0] in sections}
    for setting, name in named.items():
        try:
            functions.check_kind(name)
        except ValueError as error:
            raise UserError(str(error).replace("model = ", f"{setting} = ", 1)) from None
    functions.allow(named.values() if trust else own)
    if trust:
        return
    for setting, name in named.items():
        if name not in own:
            raise UserError(f"{setting} = {name!r} is a function that {source} names, not you, and its code would run; "
                            "if you trust whoever made that study, add --trust")
    texts = texts_in(values)
    for setting, place in places_named(config, watch="watch" in sections).items():
        if place not in texts:
            raise UserError(f"{setting} = {place!r} is a place that {source} names, not you, and it would be asked or "
                            f"told; if you trust it, add --trust, else give your own, or none, with --set {setting}=…")


def _check_named(study: str) -> None:
    """See whether there is anything of that name that may have been started. Raises UserError."""
    if "://" in study or study in preset_names() or Path(study).exists():
        return
    begun = Path("studies") / study
    hint = f"did you mean {begun}?" if (begun / STUDY_FILE).is_file() else "name the folder of a study, or a preset"
    raise UserError(f"there is no study {study}; {hint}")


def _resolve_started(study: str, place: str | None, overrides: tuple[str, ...] = (),
                     everything: bool = False) -> tuple[StudyConfig, Home]:
    """The settings that a study was started with, and its home; everything: also what is large.

    Raises UserError where it was not started.
    """
    _check_named(study)
    _, home = _locate(study, (), place)
    home.refresh(everything)
    folder = home.folder
    if not (folder / STUDY_FILE).exists():
        raise UserError(f"{home} has not been started; `kdstudy run {study}` starts it")
    from study import schema
    from study.storage import read_json

    if read_json(folder / "stages.json") is None:
        raise UserError(f"{home}/stages.json is missing or damaged; `kdstudy run {home}` writes it anew")
    schema.check(folder)
    return load_study(str(folder), overrides), home


def _resolve_begun(study: str, place: str | None) -> Home:
    """The home of a study that was started, if only a moment ago: its driver may not have written its settings yet."""
    try:
        return _resolve_started(study, place)[1]
    except UserError:
        with contextlib.suppress(UserError):
            home = Home.of(place or (study if study not in preset_names() else Path("studies") / study))
            if not (home.folder / "stages.json").exists() and home.is_driven():
                return home
        raise


class _Console(Console):
    """Prints no secrets."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(shown) if isinstance(shown, str) else shown for shown in objects), **options)


def _console() -> Console:
    """The terminal, or a log: wide enough there that lines are not cut."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=LOG_WIDTH)


def _print_results(console: Console, home: Home) -> None:
    from analysis.results import StudyFiles
    from analysis.tables import console_table
    from study.storage import read_json

    folder = home.folder
    results = read_json(folder / "results" / "results.json")
    console.print(f"\n{results['study']}", style="bold", soft_wrap=True, markup=False)
    console.print(console_table(results))
    console.print(results["verdict"], style="bold", soft_wrap=True, markup=False)
    console.print(results["scope"], style="dim", soft_wrap=True, markup=False)
    console.print()
    console.print(f"report   {folder / 'results' / 'report.html'}", soft_wrap=True, markup=False)
    if StudyFiles(folder).has_current_export:
        console.print(f"student  {folder / 'export'}", soft_wrap=True, markup=False)
    if home.uri is not None:
        console.print(f"these are copies; the study lives at {home}", style="dim", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _stoppable(place: str) -> Iterator[None]:
    """Make SIGTERM end the command as Ctrl-C does, both with a word on how to go on."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        """What is raised while an object is deleted goes no further than that: a moment later it may."""
        if lost.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            sys.__unraisablehook__(lost)

    earlier = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGALRM)}
    sys.unraisablehook = again
    try:
        yield
    except (InterruptedStudyError, KeyboardInterrupt):
        kept = f"what is finished is kept in {place}" if "://" in place or Path(place).exists() else "nothing had begun"
        raise InterruptedStudyError(f"stopped; {kept}. Run the same command again to go on") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = sys.__unraisablehook__
        for number, handler in earlier.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command; errors that a user can mend are one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # whatever stands in for them
            stream.reconfigure(errors="backslashreplace")  # not every path and terminal can do UTF-8
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries say to their programmers
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        _fail(" ".join(error.format_message().split()).removesuffix(".") + hint, error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except StudyFailedError as error:
        _fail(str(error), 1)
    except InterruptedStudyError as error:
        _fail(str(error), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from study.storage import is_full, is_out_of_memory, remedy

        path = getattr(error, "filename", None)
        if is_out_of_memory(error):
            _fail(f"there is too little memory: {one_line(error)}; free some, or raise the limit with `ulimit -v "
                  "unlimited` where there is one", 2)
        if is_full(error):
            said = getattr(error, "strerror", None) or "no space left on the disk"
            _fail(f"{f'{path}: ' if path else ''}{said}; {remedy(error)}", 2)
        if not isinstance(error, OSError) or path is None:
            click.echo(redact(traceback.format_exc()), err=True, nl=False)
            sys.exit(1)
        _fail(f"{path}: {error.strerror}; choose another place", 2)


def _fail(message: str, code: int) -> None:
    """End with one line: what a name or a path holds can neither break it nor steer the terminal, and no secret shows.
    """
    message = redact(message)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
    click.echo(f"kdstudy: {shown}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

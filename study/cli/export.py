"""Commands that export or copy a study's results: logits, pack, export, fetch."""

from pathlib import Path

import click

from kdstudy.cli.formats import format_options, show_formats, written_formats
from kdstudy.cli.group import cli
from kdstudy.cli.options import LocalPath, set_option, study_argument, trust_option
from kdstudy.cli.resolve import allow, files_must_fit, resolve_started, started_series
from kdstudy.config.permission import TRAINED
from kdstudy.errors import UserError
from kdstudy.stages import logits_file
from kdstudy.stages.order import STAGES
from kdstudy.store import fetch as fetching
from kdstudy.study import Study
from kdstudy.watch.console import make_console
from kdstudy.watch.display import show_bytes


@cli.command()
@study_argument
@click.argument("out", type=LocalPath(path_type=Path, dir_okay=False), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--teacher", metavar="NAME", help="Which teacher, with search.teacher.  [default: that of the study's "
                                                "answer]")
@set_option("Override a setting, e.g. --set data.source=PATH if the images have moved.")
@trust_option
def logits(study: str, out: Path, location: str | None, teacher: str | None, overrides: tuple[str, ...],
           trust: bool) -> None:
    """Write the teacher's logits to one file.

    Another study of the same images can use the file as its teacher: --set teacher.model= --set teacher.logits=OUT.
    study/stages/logits_file.py describes the format."""
    config, storage = resolve_started(study, location, overrides, everything=True)
    allow(config, study, overrides, trust, ("teacher",), storage)
    with files_must_fit(storage):
        size = logits_file.write(Study(config, storage).context, out, teacher)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
@study_argument
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--no-teacher", is_flag=True, help="Also leave out the teacher's weights.")
def pack(study: str, out: Path, location: str | None, no_teacher: bool) -> None:
    """Make a small copy of a finished study, to archive or share.

    OUT keeps the settings, the records, the results, every run's predictions, and the weights of the teacher and of
    the best student, so `report` and `export` work on it. It leaves out what can be recomputed (the teacher's cached
    logits, the other weights, the Optuna files) and all host names."""
    _, storage = resolve_started(study, location, everything=True)
    from kdstudy.store import packing  # plotly takes long to import

    with files_must_fit(storage):
        size = packing.pack(storage.folder, out, {stage.name: stage.pack for stage in STAGES}, not no_teacher)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
@study_argument
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@format_options
@click.option("--model", type=click.Choice(["student", "baseline", "teacher"]), default="student", show_default=True,
              help="Export the distilled student, the tuned baseline or the teacher.")
@click.option("--teacher", metavar="NAME", help="Which teacher, with --model teacher and search.teacher.  [default: "
                                                "that of the study's answer]")
@click.option("--row", help="Which student: a row of the results table, such as 'distilled default' or 'baseline "
                            "tuned'.  [default: distilled tuned, the student that the study chose]")
@click.option("--seed", type=click.IntRange(0), metavar="N",
              help="Its run with this confirmation seed.  [default: the first that did not diverge]")
@click.option("--average", type=click.Choice(["weights", "logits"]),
              help="All its runs as one model: the mean of their weights, if they start from the same trained weights, "
                   "or the mean of their logits.")
@click.option("--trial", type=click.IntRange(0), metavar="N",
              help="A trial of the distillation search, or of the baseline's with --model baseline; it is trained "
                   "again, since a search keeps no weights. `kdstudy trials STUDY` lists them.")
@click.option("--stopped", is_flag=True, help="Allow a --trial that was stopped early.")
@click.option("--calibrate", is_flag=True, help="Divide the logits by one temperature, fitted on the validation "
                                                "images. It changes no prediction, only how sure they are.")
@set_option("Override a setting, e.g. --set data.source=PATH if the images have moved.")
@trust_option
def export(study: str, out: Path, location: str | None, model: str, teacher: str | None, row: str | None,
           seed: int | None, average: str | None, trial: int | None, stopped: bool, calibrate: bool,
           overrides: tuple[str, ...], kinds: tuple[str, ...], quantise: str | None, resizes: bool,
           trust: bool) -> None:
    """Export the student that the study chose, or another model.

    Exports the last epoch as safetensors with a config.json, from the first confirmation seed with which the student
    did not diverge. Load it with timm.create_model("local-dir:OUT", pretrained=True). Other formats: --format.

    \b
    kdstudy export STUDY OUT --model baseline         the tuned baseline
    kdstudy export STUDY OUT --row 'distilled default' --seed 1234
    kdstudy export STUDY OUT --trial 12               any trial of the search
    """
    if model != "teacher" and teacher is not None:
        raise UserError("--teacher names a teacher; add --model teacher, or leave it out")
    _check_choice(model, row=row, seed=seed, average=average, trial=trial, stopped=stopped or None)
    config, storage = resolve_started(study, location, overrides, everything=True)
    allow(config, study, overrides, trust, TRAINED if trial is not None else (_SECTION[model],), storage)
    from kdstudy.export import candidates, writing  # imports torch

    formats = written_formats(kinds, quantise, resizes)
    name = row or (candidates.BASELINE if model == "baseline" else candidates.CHOSEN)
    with files_must_fit(storage):
        if trial is not None:
            from kdstudy.train import retrain  # imports torch

            arm = "baseline" if model == "baseline" else "distill"
            trained = retrain(config, storage, arm, trial, make_console(), stopped=stopped)
            candidate = candidates.trial(config, storage.folder, arm, trial, trained)
        elif model == "teacher":
            candidate = candidates.teacher(config, storage.folder, teacher)
        elif average:
            candidate = candidates.average(config, storage.folder, average, name)
        else:
            candidate = candidates.student(config, storage.folder, name, seed)
        details = writing.export(config, candidate, out, formats, folder=storage.folder, resizes=resizes,
                                 calibrate=calibrate)
    accuracy = next(iter(details["formats"].values()))["accuracy"]
    what = f"the mean of {len(candidate.weights)} runs' {average}" if average else "this run alone"
    click.echo(f"{out}: {100 * accuracy:.2f} % test accuracy ({what}); its README.md says how to load it")
    if scaling := details.get("calibration"):
        before, after = (f"{100 * scaling['test'][when]['calibration_error']:.1f}" for when in ("before", "after"))
        click.echo(f"logits divided by {scaling['temperature']:.3g}, fitted on {scaling['fitted_on']} validation "
                   f"images; calibration error on the test images: {before} points before, {after} after")
    show_formats(details["formats"])


_SECTION = {"student": "student", "baseline": "student", "teacher": "teacher"}  # which functions are called


def _check_choice(model: str, **given: object) -> None:
    """Raises UserError where options that say which model is meant exclude each other."""
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if model == "teacher" and named:
        raise UserError(f"{named[0]} says which student is meant; leave it out with --model teacher")
    if model == "baseline" and "--row" in named:
        raise UserError("--model baseline is the row 'baseline tuned'; leave out --row or --model")
    if "--stopped" in named and "--trial" not in named:
        raise UserError("--stopped allows a stopped --trial; add that, or leave out --stopped")
    for one, other in (("--trial", "--row"), ("--trial", "--seed"), ("--trial", "--average"), ("--seed", "--average")):
        if one in named and other in named:
            raise UserError(f"{one} and {other} exclude each other; leave one of them out")


@cli.command()
@study_argument
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--results", "results_only", is_flag=True,
              help="Copy only the records, the tables, the report and the exported student, without other weights and "
                   "logits.")
def fetch(study: str, out: Path, location: str | None, results_only: bool) -> None:
    """Copy a study, or a series, from a URI or a shared folder.

    Works while the study runs. All commands work on the copy, OUT; `kdstudy run OUT` resumes the study there."""
    others = ""
    if (series := started_series(study, location)) is not None:
        storage, others = series.storage, f"{series.series.setting}="
        members = {member.name: member.storage for member in series.begun}
        for member in members.values():
            member.refresh(everything=not results_only)
    else:
        (_, storage), members = resolve_started(study, location, everything=not results_only), {}
    size = fetching.fetch(storage, out, results_only, members, others)
    click.echo(f"{out}: {show_bytes(size)}")

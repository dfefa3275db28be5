"""Commands that export or copy a study's results: logits, pack, export, fetch."""

from pathlib import Path

import click

from kdstudy.cli.group import cli
from kdstudy.cli.options import LocalPath, trust_option
from kdstudy.cli.resolve import allow, files_must_fit, resolve_started
from kdstudy.errors import UserError
from kdstudy.stages import logits_file
from kdstudy.stages.order import STAGES
from kdstudy.store import fetch as fetching
from kdstudy.study import Study
from kdstudy.watch.display import show_bytes


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path, dir_okay=False), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Override a setting, e.g. --set data.source=PATH if the images have moved.")
@trust_option
def logits(study: str, out: Path, location: str | None, overrides: tuple[str, ...], trust: bool) -> None:
    """Write the teacher's logits to one file.

    Another study of the same images can use the file as its teacher: --set teacher.model= --set teacher.logits=OUT.
    study/stages/logits_file.py describes the format."""
    config, storage = resolve_started(study, location, overrides, everything=True)
    allow(config, study, overrides, trust, ("teacher",), storage)
    with files_must_fit(storage):
        size = logits_file.write(Study(config, storage).context, out)
    click.echo(f"{out}: {show_bytes(size)}")


@cli.command()
@click.argument("study", metavar="STUDY")
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
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
              help="Export a student or the teacher.")
@click.option("--row", help="Which student: a row of the results table, such as 'distilled default' or 'baseline "
                            "tuned'.  [default: distilled tuned, the student that the study chose]")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Override a setting, e.g. --set data.source=PATH if the images have moved.")
@trust_option
def export(study: str, out: Path, location: str | None, model: str, row: str | None, overrides: tuple[str, ...],
           trust: bool) -> None:
    """Export the chosen student as a model folder for timm.

    Exports the last epoch as safetensors with a config.json, from the first confirmation seed with which the student
    did not diverge. With --row, any other confirmed student.
    Load it with timm.create_model("local-dir:OUT", pretrained=True)."""
    config, storage = resolve_started(study, location, overrides, everything=True)
    allow(config, study, overrides, trust, (model,), storage)
    if model == "teacher" and row is not None:
        raise UserError("--row names a student; leave it out with --model teacher")
    from kdstudy.export import candidates, writing  # imports torch

    with files_must_fit(storage):
        if model == "teacher":
            candidate = candidates.teacher(config, storage.folder)
        else:
            candidate = candidates.student(config, storage.folder, row or candidates.CHOSEN)
        details = writing.export(config, candidate, out)
    accuracy = next(iter(details["formats"].values()))["accuracy"]
    click.echo(f"{out}: {100 * accuracy:.2f} % test accuracy (this run alone); its README.md says how to load it")


@cli.command()
@click.argument("study", metavar="STUDY")
@click.argument("out", type=LocalPath(path_type=Path), metavar="OUT")
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--results", "results_only", is_flag=True,
              help="Copy only the records, the tables, the report and the exported student, without other weights and "
                   "logits.")
def fetch(study: str, out: Path, location: str | None, results_only: bool) -> None:
    """Copy a study to this machine from a URI or a shared folder.

    Works while the study runs. All commands work on the copy, OUT; `kdstudy run OUT` resumes the study there."""
    _, storage = resolve_started(study, location, everything=not results_only)
    size = fetching.fetch(storage, out, results_only)
    click.echo(f"{out}: {show_bytes(size)}")

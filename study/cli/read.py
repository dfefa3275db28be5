"""Commands that show information without training: status, report, presets, settings."""

import math
import shutil
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from kdstudy.cli import completion
from kdstudy.cli.console import print_results
from kdstudy.cli.group import cli
from kdstudy.cli.options import LocalPath, study_argument
from kdstudy.cli.resolve import files_must_fit, resolve_begun, resolve_started, started_series
from kdstudy.cli.series import publish, report_series
from kdstudy.config.load import (
    load_study,
    preset_names,
)
from kdstudy.config.settings import settings_table
from kdstudy.errors import UserError
from kdstudy.series.status import show_series
from kdstudy.stages.order import stages_of
from kdstudy.stages.search import SEARCHES
from kdstudy.watch.console import make_console, print_columns, print_prose, print_terms
from kdstudy.watch.status import follow_status, show_status

LISTING_WIDTH = 100  # of the settings, where there is no terminal
SETTINGS_COLUMN = 36  # in which their descriptions begin; the longest setting with its default is shorter


@cli.command()
@study_argument
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--follow", is_flag=True, help="Keep updating until the study's driver exits.")
@click.option("--every", type=click.FloatRange(0.5, 86400), metavar="SECONDS",
              help="Update interval of --follow.  [default: 5; 30 for a URI]")
def status(study: str, location: str | None, follow: bool, every: float | None) -> None:
    """Show a study's progress, also while it runs.

    Works on any machine that can read the study folder or URI. Lists per stage the trials, the best trial, the speed
    and the time left, then the failed trials. --follow redraws in place on a terminal and prints a line per change in
    a log. It exits with code 0 when the study is done, and with 1 if the driver exits earlier.
    """
    if every is not None and (math.isnan(every) or not follow):
        raise UserError(f"--every {every:g} is not a number" if follow else "--every needs --follow")
    if (series := started_series(study, location)) is not None:
        show_series(series, make_console(), every or 5.0 if follow else None)
        return
    storage = resolve_begun(study, location)
    if follow:
        follow_status(storage, make_console(), stages_of, every)
    else:
        show_status(storage, make_console(), stages_of)


@cli.command()
@click.argument("studies", metavar="STUDY...", nargs=-1, required=True, shell_complete=completion.studies)
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--readme", "readmes", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              multiple=True, help="Also update the text between <!-- kdstudy results: NAME --> and <!-- end of "
                                  "kdstudy results: NAME --> in a Markdown file. Repeatable.")
@click.option("--images", type=click.Choice(["svg", "png"]),
              help="Also write each figure to results/images; needs kdstudy[images] and Chromium or Chrome.")
@click.option("--compare", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="Output file of the page that compares several studies.  [default: comparison.html]")
def report(studies: tuple[str, ...], location: str | None, readmes: tuple[Path, ...], images: str | None,
           compare: Path | None) -> None:
    """Rebuild the results table and the report.

    Works while a study runs, from the results so far. Needs neither Ray nor torch. For several studies, also writes a
    table and a page that compare their teachers, students and gains from distillation. For a series of studies, named
    alone, writes the reports of its studies and the page of the series."""
    if location and len(studies) > 1:
        raise UserError("--dir names one study; to report several, name their folders instead of "
                        f"{' and '.join(studies)}")
    from kdstudy.analysis import comparison, tables
    from kdstudy.analysis import report as report_page
    from kdstudy.store.files import read_json

    console, outcomes = make_console(), []
    if compare and len(studies) == 1:
        raise UserError("--compare needs at least two studies; name the others too")
    if len(studies) == 1 and (series := started_series(studies[0], location)) is not None:
        report_series(series, console)
        for member in series.begun if images else ():
            _write_images(console, member.storage.folder, images)
        for readme in readmes:
            _rewrite_series(readme, read_json(series.page.with_suffix(".json")))
        return
    storages = {storage.folder: storage for study in studies for storage in (resolve_started(study, location)[1],)}
    for folder, storage in storages.items():
        with files_must_fit(storage):
            changed = report_page.build(folder)
        outcomes.append(read_json(folder / "results" / "results.json"))
        print_results(console, storage)
        if images:
            _write_images(console, folder, images)
        elif changed and (folder / "results" / "images").is_dir():
            print_prose(console, f"note: the figures in {storage}/results/images are older than the page; --images "
                                 "draws them again")
        publish(console, storage, "results")
    if len(outcomes) > 1:
        names = comparison.distinct_names(outcomes, list(storages))
        console.print(f"\n{tables.takeaways(outcomes, names)}", soft_wrap=True, markup=False)
        compare = compare or Path("comparison.html")
        comparison.build(list(storages), compare)
        console.print(f"compared {compare}", soft_wrap=True, markup=False)
    for readme in readmes:
        _rewrite(readme, outcomes)


def _write_images(console: Console, folder: Path, kind: str) -> None:
    from kdstudy.analysis import report as report_page
    from kdstudy.analysis.images import ImagesUnavailable, write_images

    out = folder / "results" / "images"
    try:
        paths = write_images(report_page.exhibits(folder), out, kind)
    except ImagesUnavailable as error:
        raise UserError(f"--images {kind}: {error}") from None
    console.print(f"images   {out} ({len(paths)} {kind})", soft_wrap=True, markup=False)


def _rewrite(readme: Path, outcomes: list[dict[str, Any]]) -> None:
    """Update the result blocks of a Markdown file: one per study, and the takeaways where there are several studies.

    Raises UserError where a block is missing."""
    from kdstudy.analysis import tables

    blocks = {outcome["study"]: tables.markdown(outcome) for outcome in outcomes}
    if len(outcomes) > 1:
        blocks[tables.TAKEAWAYS_BLOCK] = tables.takeaways(outcomes)
        there = {name: content for name, content in blocks.items() if tables.has_block(readme, name)}
        blocks = there or {tables.TAKEAWAYS_BLOCK: blocks[tables.TAKEAWAYS_BLOCK]}  # the error names this block
    _rewrite_blocks(readme, blocks)


def _rewrite_series(readme: Path, content: dict[str, Any]) -> None:
    """Update the block of a series in a Markdown file. Raises UserError where it is missing."""
    from kdstudy.analysis import tables

    _rewrite_blocks(readme, {content["series"]: tables.series_markdown(content)})


def _rewrite_blocks(readme: Path, blocks: dict[str, str]) -> None:
    from kdstudy.analysis import tables

    try:
        changed = [name for name, content in blocks.items() if tables.rewrite_block(readme, name, content)]
    except ValueError as error:
        raise UserError(str(error)) from None
    click.echo(f"{readme}: rewrote {', '.join(changed)}" if changed else f"{readme} is up to date")


@cli.command()
@study_argument
@click.option("--dir", "location", metavar="FOLDER_OR_URI", help="Study folder or URI.")
@click.option("--search", type=click.Choice([search.name for search in SEARCHES]), help="Only one.  [default: both]")
@click.option("--sort", "key", default="val_accuracy", show_default=True, metavar="COLUMN",
              help="val_accuracy (of the last epoch), best_accuracy (of any epoch), epochs, trial, or a "
                   "hyperparameter. Accuracies and epochs begin with the largest, all else with the smallest.")
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N.")
def trials(study: str, location: str | None, search: str | None, key: str, top: int | None) -> None:
    """List the searches' trials, best first.

    A trial that was stopped early has the accuracy of an earlier epoch, which is not comparable; those that ran all
    epochs are bold. `kdstudy export STUDY OUT --trial N` exports one of them."""
    _, storage = resolve_started(study, location)
    from kdstudy.analysis.study_files import StudyFiles  # pandas takes long to import
    from kdstudy.analysis.trials_table import sort_keys, trials_table

    with files_must_fit(storage):
        found = StudyFiles(storage.folder)
        if key not in (known := sort_keys(found)):
            raise UserError(f"--sort {key!r} is not a column; the columns are {', '.join(known)}")
        table = trials_table(found, search, key, top)
    if not table.rows:
        raise UserError(f"{storage} has no trials yet; `kdstudy run {storage}` starts them")
    make_console().print(table)


@cli.command()
def presets() -> None:
    """List the studies that come with kdstudy."""
    print_columns(make_console(), [(name, load_study(name).about) for name in preset_names()], widths=(24,))


@cli.command()
@click.argument("section", required=False, metavar="[SECTION]")
def settings(section: str | None) -> None:
    """List every setting of a study file with its default."""
    sections = settings_table()
    if section and section not in sections:
        raise UserError(f"{section!r} is not a section; the sections are {', '.join(filter(None, sections))}")
    console, width = make_console(), shutil.get_terminal_size((LISTING_WIDTH, 0)).columns
    for name, lines in sections.items():
        if section in (None, name):
            console.print(f"[{name}]" if name else "above all sections", style="bold", markup=False)
            # In full, as --set takes it: a line that is searched for says what it belongs to.
            print_terms(console, [(f"  {name}{'.' if name else ''}{setting} {default}", description)
                                  for setting, default, description in lines], SETTINGS_COLUMN, width)

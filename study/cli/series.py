"""What the commands do with a series of studies."""

import contextlib

from rich.console import Console
from rich.markup import escape

from kdstudy.cli.console import stoppable
from kdstudy.cli.resolve import files_must_fit
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.series.folder import SeriesFolder
from kdstudy.stages.order import NAMES, REPORTED
from kdstudy.watch.console import print_prose


def run_series(series: SeriesFolder, console: Console, until: str, address: str | None) -> None:
    about = escape(series.series.about)
    print_prose(console, f"[bold]{series.series.name}[/bold]  {about}", markup=True)
    with stoppable(str(series.storage)):
        with console.status("reading settings and data") if console.is_terminal else contextlib.nullcontext():
            from kdstudy.series import run as running  # Ray and torch take seconds to import
        did_work = running.run(series, console, until=until, address=address)
    if not did_work:
        upto = "" if until == NAMES[-1] else f" up to {until}"
        console.print(f"\nNothing to do: {series.storage} is complete{upto}.", markup=False)
    if until in REPORTED:
        print_series(console, series)


def plan_series(series: SeriesFolder, console: Console, measure: bool, gpus: int | None, tflops: float,
                address: str | None) -> None:
    from kdstudy.series.plan import show_plan  # imports Ray and torch

    show_plan(series, console, measure, gpus, tflops, address)


def print_series(console: Console, series: SeriesFolder) -> None:
    """Print the table of a series whose page has been written, what it says, and where the page is."""
    from kdstudy.analysis.console_table import series_table
    from kdstudy.store.files import read_json

    content = read_json(series.page.with_suffix(".json"))
    console.print(f"\n{content['series']}", style="bold", soft_wrap=True, markup=False)
    console.print(series_table(content))
    print_prose(console, content["sentence"], style="bold")
    if content["ends"]:
        print_prose(console, content["ends"])
    if content["caveats"]:
        print_prose(console, " ".join(content["caveats"]), style="dim")
    console.print(f"\nseries   {series.page}", soft_wrap=True, markup=False)
    if series.storage.uri is not None:
        console.print(f"this is a copy; the series is stored at {series.storage}", style="dim", soft_wrap=True,
                      markup=False)


def report_series(series: SeriesFolder, console: Console) -> None:
    """Rebuild the reports of the members that have begun, and the page of the series.

    Raises UserError where none has begun."""
    from kdstudy.analysis import report as report_page
    from kdstudy.series.page import write_page

    if not series.begun:
        raise UserError(f"no study of {series.storage} has been started; `kdstudy run {series.storage}` starts them")
    for member in series.begun:
        with files_must_fit(member.storage):
            report_page.build(member.storage.folder)
        publish(console, member.storage, "results")
    with files_must_fit(series.storage):
        write_page(series)
    publish(console, series.storage, "results")
    print_series(console, series)


def publish(console: Console, storage: object, name: str) -> None:
    """Upload a folder of results; where that fails, they are here all the same."""
    try:
        storage.publish(storage.folder / name)
    except StudyFailedError as error:
        print_prose(console, f"note: {error}")

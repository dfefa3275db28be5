"""Run the members of a series in turn, with one connection to Ray, and write the page of the series."""

from __future__ import annotations

from rich.console import Console

from kdstudy import driver
from kdstudy.errors import StorageError, StudyFailedError, UserError
from kdstudy.series.folder import SeriesFolder
from kdstudy.series.page import write_page
from kdstudy.stages.order import NAMES, REPORTED, names
from kdstudy.store import files
from kdstudy.trainables.messages import one_line
from kdstudy.tune.connection import KeptRay
from kdstudy.watch.console import print_prose
from kdstudy.watch.display import Display


def run(series: SeriesFolder, console: Console, *, until: str = NAMES[-1], address: str | None = None) -> bool:
    """Run or resume every member. A member that fails or cannot run does not keep the others from running.

    until, address: see `driver.run`. Returns whether there was anything to do. Raises UserError, InterruptedStudyError,
    and StudyFailedError, once the other members have run.
    """
    did_work, failures, unwritten = False, [], ""
    refused: dict[str, UserError] = {}
    with files.StudyLock(series.storage.folder, str(series.storage)), KeptRay() as kept:  # the members have their own
        series.begin()
        for number, member in enumerate(series.members, 1):
            print_prose(console, f"\n{number} of {len(series.members)}: {member.name}", style="bold")
            display = Display(console, names(member.member.config))
            try:
                did_work |= driver.run(member.study(), display, until=until, address=address, kept=kept)
            except StorageError:
                raise
            except UserError as error:
                refused[member.name] = error
                if number == len(refused) > 1 and len(set(map(str, refused.values()))) == 1:  # it concerns them all
                    raise
                print_prose(console, f"{member.name} cannot run: {error}", style="red")
            except StudyFailedError as error:
                failures.append(f"{member.name}: {error}")
                print_prose(console, f"{member.name} failed: {error}", style="red")
            if series.begun and until in REPORTED:
                try:
                    did_work |= write_page(series)
                except (ValueError, FileNotFoundError) as error:  # of a member that may yet be run again
                    unwritten = f"{series.page} is not up to date: {one_line(error)}"
                    print_prose(console, f"note: {unwritten}")
                    continue
                unwritten = ""
                series.storage.publish(series.page.parent)
    if unwritten:
        failures.append(unwritten)
    kind = StudyFailedError if failures else UserError
    failures += [f"{name}: {error}" for name, error in refused.items()]
    if failures:
        more = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
        raise kind(failures[0] + more)
    return did_work

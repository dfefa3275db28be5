"""The kdstudy command."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from study.config import STUDY_FILE, StudyConfig, load_study, preset_names
from study.errors import InterruptedStudyError, StudyFailedError, UserError

STAGE_NAMES = ("teacher", "baseline", "teacher_logits", "distill", "confirm", "report", "export")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def study_options(command: Callable) -> Callable:
    """STUDY and the options that every command takes that works on one."""
    for decorate in (
        click.option("--smoke", is_flag=True, help="Shrink the study: a few short trials, two seeds."),
        click.option("--dir", "folder", type=click.Path(path_type=Path), metavar="FOLDER",
                     help="Where the study lives.  [default: studies/NAME]"),
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help="Change a setting, e.g. --set search.trials=40. May be given several times."),
        click.argument("study", metavar="STUDY"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="kdstudy", prog_name="kdstudy")
def cli() -> None:
    """Does knowledge distillation help my student, with which temperature, alpha and learning rate, and am I sure?

    STUDY is a preset's name (see `kdstudy presets`), a TOML file, or the folder of a study.

    \b
    kdstudy run digits            a whole study, in about four minutes on two CPU cores
    kdstudy plan STUDY            what a study will do, before it does it
    kdstudy status FOLDER         how far it is
    """


@cli.command()
@study_options
@click.option("--until", type=click.Choice(STAGE_NAMES), default=STAGE_NAMES[-1], metavar="STAGE",
              help=f"Stop after a stage: {', '.join(STAGE_NAMES)}.")
@click.option("--address", metavar="ADDRESS", help="A running Ray cluster's address.  [default: RAY_ADDRESS, or local]")
def run(study: str, overrides: tuple[str, ...], folder: Path | None, smoke: bool, until: str,
        address: str | None) -> None:
    """Run a study: teacher, tuned baseline, distillation search, confirmation, report, export.

    Run the same command again to go on where it was cut off. What is done is not done again.
    """
    config, folder = _resolve(study, overrides, folder, smoke)
    console = Console(highlight=False)
    console.print(f"[bold]{config.name}[/bold]  {config.about}", soft_wrap=True)
    with console.status("reading settings and data") if console.is_terminal else contextlib.nullcontext():
        from study.display import Display
        from study.stages import STAGES, Study
    work = Study(config, folder, Display(console, STAGES), address)
    with _sigterm_interrupts():
        try:
            work.run(until)
        except (InterruptedStudyError, KeyboardInterrupt):
            raise InterruptedStudyError(f"stopped; what is finished is kept in {folder}. Run the same command again "
                                        "to go on") from None
    if not work.did_work:
        console.print(f"Nothing to do: {folder} is complete{'' if until == STAGES[-1] else f' up to {until}'}.")
    if until in ("report", "export"):
        _print_results(console, folder)


@cli.command()
def presets() -> None:
    """List the studies that come with kdstudy."""
    for name in preset_names():
        config = load_study(name)
        click.echo(f"{name:16} {config.about}")


def _resolve(study: str, overrides: tuple[str, ...], folder: Path | None,
             smoke: bool = False) -> tuple[StudyConfig, Path]:
    """The settings and the folder of a study. A study folder's own settings hold unless overridden."""
    config = load_study(study, overrides, smoke)
    if folder is None:
        own = Path(study)
        folder = own if (own / STUDY_FILE).is_file() and not smoke else Path("studies") / config.name
    return config, folder


def _print_results(console: Console, folder: Path) -> None:
    from analysis.tables import console_table

    from study.storage import read_json

    results = read_json(folder / "results" / "results.json")
    console.print()
    console.print(console_table(results))
    console.print(f"[bold]{results['verdict']}[/bold]", soft_wrap=True)
    console.print(results["scope"], style="dim", soft_wrap=True)
    console.print()
    console.print(f"report   {folder / 'results' / 'report.html'}", soft_wrap=True)
    if (folder / "export" / "config.json").exists():
        console.print(f"student  {folder / 'export'}", soft_wrap=True)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM end the command as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def main() -> None:
    """Run the command; errors that a user can mend are one line and exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except StudyFailedError as error:
        _fail(str(error), 1)
    except InterruptedStudyError as error:
        _fail(str(error), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    click.echo(f"kdstudy: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

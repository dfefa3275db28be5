"""The command that checks an export again: verify."""

import json
from pathlib import Path

import click

from kdstudy.cli.group import cli
from kdstudy.cli.options import LocalPath
from kdstudy.config.load import load_study, preset_names
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.export.choices import CHOICES
from kdstudy.trainables.messages import printable


@cli.command()
@click.argument("out", type=LocalPath(path_type=Path, file_okay=False), metavar="OUT")
@click.option("--data", "source", metavar="STUDY_OR_SOURCE",
              help="Also measure the accuracy on the test images: of this study, or read from this data.source "
                   "with the settings of the export.")
@click.option("--set", "overrides", multiple=True, metavar="data.KEY=VALUE",
              help="With --data: override a setting of [data].")
@click.option("--format", "kinds", type=click.Choice(CHOICES), multiple=True,
              help="Run this format alone. Repeatable.  [default: all that the export has]")
@click.option("--function", metavar="PACKAGE.MODULE:FUNCTION",
              help="The function that builds the model, if the export is of one of your own.")
@click.option("--trust", is_flag=True,
              help="Trust whoever wrote OUT: also read its pt2 file, which could run code.")
def verify(out: Path, source: str | None, overrides: tuple[str, ...], kinds: tuple[str, ...], function: str | None,
           trust: bool) -> None:
    """Check that an export is as it was.

    Every file's hash is compared with export.json. Every format is loaded in a process of its own, without kdstudy, and
    must give the logits that it gave at its export. No images are needed; with --data the accuracy is compared too.
    Exit code 1 if a file is not as it was."""
    if overrides and source is None:
        raise UserError("--set changes which images are read; add --data")
    from kdstudy.export import verify as checking  # imports torch

    details = checking.read(out)
    test = None
    if source is not None:
        test = checking.test_images(_config(out / checking.SETTINGS, source, overrides).data, details)
    found = checking.verify(out, details, kinds=_parts(kinds, details), test=test, function=function, trust=trust)
    click.echo(f"{'':10} {'same files':>10}  {'difference':>10}  accuracy")
    for one in found:
        accuracy = (f"{100 * one.accuracy:.2f} %, at its export {100 * one.recorded:.2f} %" if one.accuracy is not None
                    else f"{100 * one.recorded:.2f} % at its export; --data measures it again")
        click.echo(f"{one.name:10} {len(one.files):>10}  {one.largest_difference:>10.2g}  {accuracy}")
    others = [name for name in details["formats"] if name not in {one.name for one in found}]
    if unlisted := checking.unlisted(out, details):
        more = " …" if unlisted[3:] else ""
        click.echo(f"note: {out} also holds {printable(', '.join(unlisted[:3]))}{more}, which its {checking.DETAILS} "
                   "does not list, so it was not checked")
    click.echo(f"{out} is as it was exported" + (f"; not run: {', '.join(others)}" if others else ""))


def _parts(kinds: tuple[str, ...], details: dict) -> list[str]:
    """The formats to run; what is made of one's file belongs to it."""
    return [name for name, found in details["formats"].items() if name in kinds or found.get("of") in kinds] + [
        name for name in kinds if name not in details["formats"]]


def _config(stored: Path, source: str, overrides: tuple[str, ...]) -> StudyConfig:
    """The settings that say which images are meant: those of a study, or those of the export with another source. What
    the export itself says about where images are is never followed."""
    from kdstudy.trainables.sources import NAMES  # imports Pillow and pyarrow

    is_study = Path(source).suffix == ".toml" or (Path(source) / "study.toml").is_file() or (
        source in preset_names() and source not in NAMES)
    if is_study:
        return load_study(source, overrides)
    return load_study(str(stored), (f"data.source={json.dumps(source)}", *overrides))

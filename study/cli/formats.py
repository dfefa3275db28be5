"""Options of `kdstudy export` that name formats, and what is printed of them."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from kdstudy.errors import UserError
from kdstudy.export.choices import CHOICES, DEFAULT, QUANTISED
from kdstudy.watch.display import show_bytes

POINT = 1.0  # of accuracy, the loss from which on quantising is worth a warning


def format_options(command: Callable) -> Callable:
    """Add --format, --quantise and --resize-inside to a command."""
    for decorate in (
        click.option("--resize-inside", "resizes", is_flag=True,
                     help="The graphs of onnx and pt2 take images of any size and resize them."),
        click.option("--quantise", type=click.Choice(list(QUANTISED)),
                     help="Also write model.int8.onnx beside the ONNX file, and measure what it loses."),
        click.option("--format", "kinds", type=click.Choice(CHOICES), multiple=True,
                     help=f"A format to write. Repeatable.  [default: {DEFAULT}]"),
    ):
        command = decorate(command)
    return command


def written_formats(kinds: Sequence[str], quantise: str | None, resizes: bool) -> list[str]:
    """The names of the formats to write. Raises UserError for options that do not go together, or a missing package."""
    from kdstudy.export.formats import FORMAT  # imports torch

    kinds = list(kinds) or [DEFAULT]
    if quantise:
        name = QUANTISED[quantise]
        if FORMAT[name].source not in kinds:
            raise UserError(f"--quantise {quantise} makes another file of the ONNX file; add --format "
                            f"{FORMAT[name].source}")
        kinds.append(name)
    if resizes and not set(kinds) - {DEFAULT}:
        raise UserError("--resize-inside is for graphs; add --format onnx or --format pt2")
    for name in kinds:
        FORMAT[name].check_installed()
    return kinds


def show_formats(formats: dict[str, dict[str, Any]]) -> None:
    """Print a line for each format if there are several. formats: of export.json."""
    if len(formats) == 1:
        return
    click.echo(f"{'':10} {'size':>9}  {'accuracy':>9}  {'same prediction':>15}  largest difference of a logit")
    for name, found in formats.items():
        size = sum(one["bytes"] for one in found["files"].values())
        click.echo(f"{name:10} {show_bytes(size):>9}  {100 * found['accuracy']:7.2f} %  "
                   f"{100 * found['agreement']:13.2f} %  {found['largest_difference']:.2g}")
    for name, found in formats.items():
        if found.get("lost_points", 0) > POINT:
            click.echo(f"note: {name} is {found['lost_points']:.2f} points less accurate than {found['of']}")

"""The group that all commands belong to."""

import click

from kdstudy.cli.options import CONTEXT
from kdstudy.trainables import functions


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="kdstudy", prog_name="kdstudy")
@click.pass_context
def cli(context: click.Context) -> None:
    """Does knowledge distillation help my student, with which temperature, alpha and learning rate, and am I sure?

    STUDY is a preset's name (see `kdstudy presets`), a TOML file, or the folder or URI of a study.

    \b
    kdstudy run digits            a whole study, in about 2½ minutes on two CPU cores
    kdstudy run digits --smoke    the same, shrunk to half a minute
    kdstudy plan STUDY            what a study will do, before it does it
    kdstudy status FOLDER         how far it is
    """
    context.with_resource(functions.only_allowed())

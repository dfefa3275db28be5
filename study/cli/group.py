"""The click group that all subcommands belong to."""

import click

from kdstudy.cli.options import CONTEXT
from kdstudy.trainables import functions


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="kdstudy", prog_name="kdstudy")
@click.pass_context
def cli(context: click.Context) -> None:
    """Does knowledge distillation help my student, at which temperature, alpha and learning rate, and how sure is that?

    STUDY is the name of a preset (see `kdstudy presets`), a TOML file, or the folder or URI of a study.

    \b
    kdstudy run digits            run a whole study in about 2½ minutes on two CPU cores
    kdstudy run digits --smoke    run a tiny version of it in about a minute
    kdstudy plan STUDY            show what a study would do and cost
    kdstudy status FOLDER         show a study's progress
    """
    context.with_resource(functions.only_allowed())

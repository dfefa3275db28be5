"""Options that several commands share."""

import os
from collections.abc import Callable
from typing import Any

import click

from kdstudy.cli import completion
from kdstudy.errors import UserError
from kdstudy.trainables.credentials import is_secret_name

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LocalPath(click.Path):
    """A local output path. Raises UserError for a URI."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            raise UserError(f"{value} is a URI, but this command writes to this machine: name a local file or folder, "
                            "and upload it with the store's own client")
        return super().convert(value, param, ctx)


study_argument = click.argument("study", metavar="STUDY", shell_complete=completion.studies)


def set_option(text: str) -> Callable:
    """The option --set. text: its help."""
    return click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=text,
                        shell_complete=completion.settings)


def study_options(command: Callable) -> Callable:
    """Add the STUDY argument and the options --set, --dir and --smoke to a command."""
    for decorate in (
        click.option("--smoke", is_flag=True, help="Shrink the study to a few short trials and two seeds."),
        click.option("--dir", "location", metavar="FOLDER_OR_URI",
                     help="Study folder, or a URI such as s3://BUCKET/studies/NAME.  [default: studies/NAME]"),
        set_option("Override a setting, e.g. --set search.trials=40. Repeatable."),
        study_argument,
    ):
        command = decorate(command)
    return command


trust_option = click.option("--trust", is_flag=True,
                            help="Trust a study folder from someone else: run the model functions it names, and "
                                 "contact the hosts and trackers it names.")
address_option = click.option("--address", metavar="ADDRESS",
                              help="Address of a running Ray cluster.  [default: RAY_ADDRESS, else this machine]")


def variables(given: tuple[str, ...]) -> dict[str, str]:
    """Parse --env options: NAME=VALUE sets a variable, NAME copies it from this environment.

    Raises UserError where a variable is not set, is malformed or looks like a secret."""
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or (not equals and name not in os.environ):
            raise UserError(f"--env {name}: {name} is not set here; set it, or give --env {name}=VALUE"
                            if name.isidentifier() else f"--env {name}… is not of the form NAME=VALUE or NAME")
        if is_secret_name(name):
            raise UserError(f"--env {name} looks like a secret, and the job's description would show it; give it to "
                            "the pods with --env-from SECRET, or set it where Ray is started on the nodes")
        variables[name] = value if equals else os.environ[name]
    return variables

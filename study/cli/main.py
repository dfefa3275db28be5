"""Entry point of the `kdstudy` command. Errors that the user can fix are printed as one line."""

import contextlib
import os
import shutil
import sys
import textwrap
import traceback
import warnings

import click

from kdstudy.cli import export, read, run, submit, verify  # noqa: F401  importing them registers their commands
from kdstudy.cli.group import cli
from kdstudy.errors import InterruptedStudyError, StudyFailedError, UserError
from kdstudy.store.files import is_full, is_out_of_memory, remedy
from kdstudy.trainables.credentials import redact
from kdstudy.trainables.messages import one_line


def main() -> None:
    """Run the command and exit.

    Exit codes: 0 success, 1 the study failed, 2 an error that the user can fix, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # replaced streams may lack reconfigure()
            stream.reconfigure(errors="backslashreplace")  # some paths and terminals are not UTF-8
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # library warnings are meant for developers
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        _fail(" ".join(error.format_message().split()).removesuffix(".") + hint, error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except StudyFailedError as error:
        _fail(str(error), 1)
    except InterruptedStudyError as error:
        _fail(str(error), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        path = getattr(error, "filename", None)
        if is_out_of_memory(error):
            _fail(f"out of memory: {one_line(error)}; free some memory, or raise the limit with `ulimit -v "
                  "unlimited` where there is one", 2)
        if is_full(error):
            said = getattr(error, "strerror", None) or "no space left on the disk"
            _fail(f"{f'{path}: ' if path else ''}{said}; {remedy(error)}", 2)
        if not isinstance(error, OSError) or path is None:
            click.echo(redact(traceback.format_exc()), err=True, nl=False)
            sys.exit(1)
        _fail(f"{path}: {error.strerror}; choose another location", 2)


def _fail(message: str, code: int) -> None:
    """Print one line and exit. Control characters are escaped and secrets are redacted."""
    message = redact(message)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
    line = f"kdstudy: {shown}"
    if sys.stderr.isatty():  # the terminal would break it within words
        line = textwrap.fill(line, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    click.echo(line, err=True)
    sys.exit(code)


"""What the shell completes with the Tab key: studies and settings. Starts neither torch nor Ray, so it is quick."""

from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from kdstudy.config.load import STUDY_FILE, preset_names
from kdstudy.config.settings import settings_table


class _Bash(BashComplete):
    """Bash, with no space after a setting's =, where its value follows."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace")


add_completion_class(_Bash)


def studies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets, begun studies here and in `studies/`, and TOML files; any path where none of these begins so."""
    here = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    found = [*preset_names(), *_begun(here), *(_begun("studies/") if not here else []),
             *(f"{here}{path.name}" for path in sorted(Path(here or ".").glob("*.toml")) if path.is_file())]
    fitting = [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)
               and name.isprintable()]
    return fitting or [CompletionItem(incomplete, type="file")]


def _begun(folder: str) -> list[str]:
    """The studies in a folder, "" or with a slash at its end."""
    return [f"{folder}{path.parent.name}" for path in sorted(Path(folder or ".").glob(f"*/{STUDY_FILE}"))]


def settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The full names of settings, up to and with the =."""
    names = [f"{section}.{setting}=" if section else f"{setting}="
             for section, rows in settings_table().items() for setting, *_ in rows]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]

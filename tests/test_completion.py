"""What the Tab key completes, asked as bash asks it."""

import os
import subprocess
import sys

import pytest

# As the installed command is called; and what it must not wait for.
COMMAND = """
import sys
sys.argv[0] = "kdstudy"
from kdstudy.cli.main import main
try:
    main()
finally:
    slow = {"torch", "ray", "timm", "optuna", "pandas", "plotly"} & set(sys.modules)
    assert not slow, slow
"""


def completed(words: list[str], cwd, how="bash_complete") -> list[str]:
    asked = os.environ | {"_KDSTUDY_COMPLETE": how, "COMP_WORDS": "\n".join(["kdstudy", *words]),
                          "COMP_CWORD": str(len(words))}
    done = subprocess.run([sys.executable, "-c", COMMAND], env=asked, cwd=cwd, capture_output=True, text=True)
    assert done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two studies, a TOML file and a folder that is no study."""
    home = tmp_path_factory.mktemp("home")
    for folder in ("studies/digits-smoke", "studies/flowers", "other", "birds"):
        (home / folder).mkdir(parents=True)
    for study in ("studies/digits-smoke", "studies/flowers", "birds"):
        (home / study / "study.toml").touch()
    (home / "mine.toml").touch()
    return home


@pytest.mark.parametrize(("words", "found"), [
    (["run", "digi"], ["plain,digits", "plain,digits-full"]),
    (["plan", "m"], ["plain,mine.toml"]),
    (["export", "stu"], ["plain,studies/digits-smoke", "plain,studies/flowers"]),
    (["status", "studies/fl"], ["plain,studies/flowers"]),
    (["report", "studies/flowers", "b"], ["plain,birds"]),
    (["train", "distill", "oth"], ["file,oth"]),
    (["run", "digits", "--set", "search.tr"], ["plain,search.trials="]),
    (["logits", "studies/flowers", "--set", "confirm."],
     ["plain,confirm.seeds=", "plain,confirm.gain=", "plain,confirm.primary="]),
    (["run", "digits", "--set", "search.trials=4"], []),
])
def test_studies_and_settings_are_completed(words, found, home):
    assert completed(words, home) == found


def test_bash_adds_no_space_after_the_name_of_a_setting(home):
    assert "[[ $value == *= ]] && compopt -o nospace" in " ".join(completed([], home, "bash_source"))

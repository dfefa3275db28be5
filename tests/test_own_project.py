"""kdstudy in a project that has modules of the names that kdstudy's own folders have: the command, with and without
the project on PYTHONPATH, and a script that uses the Python API."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import kdstudy, results_of, with_set

NETS = '''
from torch import nn


def tiny(num_classes, in_chans, **options):
    """A linear classifier of what is pooled to 4x4."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))
'''
SHORT = ("student.model=analysis.nets:tiny", "student.args={}", "search.trials=1", "search.baseline_trials=1",
         "search.protected=0", "search.baseline_protected=0", "confirm.seeds=1", "teacher.epochs=1", "train.epochs=1")
SCRIPT = '''
import kdstudy

settings = kdstudy.load("digits", smoke=True, student={"model": "analysis.nets:tiny", "args": {}}, train={"epochs": 2},
                        confirm={"seeds": 2},
                        search={"trials": 2, "baseline_trials": 2, "protected": 1, "baseline_protected": 1})
plan = kdstudy.plan(settings, "mine")
study = kdstudy.run(settings, "mine")
print("VERDICT", study.verdict)
print("AGAIN", kdstudy.run(settings, "mine").verdict == study.verdict, int(plan["runs"].sum()))
print("FIGURES", *study.figures)
print("ROWS", len(study.results), len(study.trials), len(study.curves))
'''
pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package `analysis` that defines a model, and with modules that nobody but their owner imports."""
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("")
    (tmp_path / "analysis" / "nets.py").write_text(NETS)
    for name in ("study.py", "trainables.py", "stages.py", "config.py"):
        (tmp_path / name).write_text("raise SystemExit('imported by mistake')\n")
    return tmp_path


def test_a_script_plans_runs_and_reads_a_study(project):
    (project / "mine.py").write_text(SCRIPT)
    found = os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "mine.py"], cwd=project, text=True, capture_output=True, timeout=600,
                          env=os.environ | {"PYTHONPATH": found, "KDSTUDY_CACHE": str(project / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.split(" ", 1) for line in done.stdout.splitlines()]
    said = {name: rest[0] for name, *rest in words if name.isupper() and rest}
    outcome = results_of(project / "mine")
    assert said["VERDICT"] == outcome["verdict"] and said["AGAIN"].startswith("True ")
    assert {"gain", "history"} <= set(said["FIGURES"].split())
    rows, trials, _ = map(int, said["ROWS"].split())
    assert rows == len(outcome["rows"]) and trials >= 2 + 2 + 1
    assert "stage" in done.stdout and "8/8 export" in done.stdout  # the plan's table, and the driver's lines


@pytest.mark.parametrize("path", ["", "."])
def test_a_study_runs_to_its_end_beside_modules_of_the_same_names(project, path):
    found = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
    environment = os.environ | ({"PYTHONPATH": found} if found else {})
    printed = kdstudy("run", "digits", "--smoke", *with_set(SHORT), cwd=project, env=environment).stdout
    assert "8/8 export" in printed
    rows = {(row["arm"], row["configuration"]) for row in results_of(project / "studies" / "digits-smoke")["rows"]}
    assert ("distilled", "tuned") in rows and ("baseline", "tuned") in rows
    assert (project / "studies" / "digits-smoke" / "export" / "model.safetensors").exists()

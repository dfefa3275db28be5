"""kdstudy in a project that has modules of the names that kdstudy's own folders have."""

import os
from pathlib import Path

import pytest
from running import kdstudy, results_of, with_set

NETS = '''
import torch
from torch import nn


def tiny(num_classes, in_chans, **options):
    """A linear classifier of what is pooled to 4x4."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))
'''
SHORT = ("student.model=analysis.nets:tiny", "student.args={}", "search.trials=1", "search.baseline_trials=1",
         "search.protected=0", "search.baseline_protected=0", "confirm.seeds=1", "teacher.epochs=1", "train.epochs=1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package `analysis` that defines a model, and with modules that nobody but their owner imports."""
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("")
    (tmp_path / "analysis" / "nets.py").write_text(NETS)
    for name in ("study.py", "trainables.py", "stages.py", "config.py"):
        (tmp_path / name).write_text("raise SystemExit('imported by mistake')\n")
    return tmp_path


@pytest.mark.parametrize("path", [pytest.param("", marks=pytest.mark.slow), "."])
def test_a_study_runs_to_its_end_beside_modules_of_the_same_names(project, path):
    found = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
    environment = os.environ | ({"PYTHONPATH": found} if found else {})
    printed = kdstudy("run", "digits", "--smoke", *with_set(SHORT), cwd=project, env=environment).stdout
    assert "8/8 export" in printed
    rows = {(row["arm"], row["configuration"]) for row in results_of(project / "studies" / "digits-smoke")["rows"]}
    assert ("distilled", "tuned") in rows and ("baseline", "tuned") in rows
    assert (project / "studies" / "digits-smoke" / "export" / "model.safetensors").exists()

"""What `kdstudy plan` foretells, held against the clock: on a machine that does nothing else, so without `-n`.

    pytest --slow -n 0 tests/test_plan.py
"""

import os
import re
import time

import pytest
from running import kdstudy

TOLERANCE = 0.25


def foretold(printed):
    """Seconds from beginning to end."""
    minutes, seconds = re.search(r"from beginning to end: about (\d+):(\d\d)", printed).groups()
    return 60 * int(minutes) + int(seconds)


@pytest.mark.slow
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs the machine for itself: run with -n 0")
@pytest.mark.parametrize("study", ["digits", "digits-full"])
def test_a_plan_foretells_how_long_a_study_takes(study, tmp_path):
    """Before it begins, from a few timed steps, and afterwards, from its records."""
    before = foretold(kdstudy("plan", study, "--measure", cwd=tmp_path).stdout)
    began = time.monotonic()
    kdstudy("run", study, cwd=tmp_path)
    took = time.monotonic() - began
    after = foretold(kdstudy("plan", study, cwd=tmp_path).stdout)
    print(f"{study}: {before} s before, took {took:.0f} s, {after} s from its records")
    assert before == pytest.approx(took, rel=TOLERANCE) and after == pytest.approx(took, rel=TOLERANCE)

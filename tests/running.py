"""The command line, run as a user runs it, and what it leaves behind."""

import json
import subprocess
import sys
import time

KDSTUDY = [sys.executable, "-m", "kdstudy"]
# Small enough to be run several times: the smoke study with fewer epochs, one trial at a time.
SMOKE_EPOCHS = 12
ONE_AT_A_TIME = ["digits", "--smoke", "--set", f"train.epochs={SMOKE_EPOCHS}", "--set", "resources.concurrent=1"]
# What can be added to it when it is done: another teacher, and the audit of the usual protocol.
SECOND_TEACHER = ["teacher.replicates=2"]
AUDIT = ["audit.seeds=2", "audit.baseline_batch_size=72"]


def kdstudy(*arguments, cwd, check=True, timeout=600, **kwargs):
    """Run the command in `cwd`; with check, a failure shows what it printed."""
    result = subprocess.run([*KDSTUDY, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                            **kwargs)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def with_set(settings):
    return [word for setting in settings for word in ("--set", setting)]


def results_of(folder):
    return json.loads((folder / "results" / "results.json").read_text())


def wait_until(process, condition, timeout=400):
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline, "the stage did not get that far"
        time.sleep(0.05)


def wait_for(condition, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

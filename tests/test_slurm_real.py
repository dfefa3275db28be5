"""`kdstudy submit --to slurm` on a real SLURM of two nodes; see slurm_cluster.py."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import KDSTUDY
from slurm_cluster import SlurmCluster, missing

from kdstudy.analysis.study_files import StudyFiles

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=f"no SLURM here: {missing()} is missing")]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, which share this environment and this project. Sockets lie in their folder, so its name is short."""
    folder = Path(f"/var/tmp/kd-{os.getpid()}")
    kept = (sys.prefix, str(Path(__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(":")))
    with SlurmCluster(folder, kept) as cluster:
        yield cluster
    shutil.rmtree(folder)


@pytest.fixture
def shared(cluster):
    """A folder that all nodes see."""
    folder = cluster.folder / f"work-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


def submit(cluster, shared, *more, check=True):
    """Returns the number of the job, or what is said if it is not submitted."""
    setup = [f"source {sys.prefix}/bin/activate", "export OMP_NUM_THREADS=1 RAY_worker_niceness=0"]
    if own := os.environ.get("PYTHONPATH"):
        setup.append(f"export PYTHONPATH={own}")
    words = ("submit", "digits", "--smoke", "--to", "slurm", "--dir", str(shared / "study"), "--nodes", "2",
             *(word for line in setup for word in ("--setup", line)), *more)
    done = subprocess.run([*KDSTUDY, *words], cwd=shared, env=cluster.environment, text=True, capture_output=True)
    if not check:
        return done
    assert done.returncode == 0, done.stderr
    return re.search(r"job\s+(\d+)", done.stdout)[1]


def log(shared):
    return "".join(path.read_text() for path in shared.glob("kdstudy-*.log"))


def wait_for(condition, seconds, shared):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log(shared)
        time.sleep(0.5)


def reports(shared):
    return sum(path.read_text().count('"event": "report"') for path in shared.glob("study/*/record.jsonl"))


def check_finished(shared):
    """Every trial once, and a verdict that nothing buries."""
    study = StudyFiles(shared / "study")
    assert study.confirmation is not None and study.has_current_export
    for events in study.events.values():
        seen = [(event["trial"], event["epoch"]) for event in events if event["event"] == "report"]
        assert len(seen) == len(set(seen))
    text = log(shared)
    verdict = json.loads((shared / "study" / "results" / "results.json").read_text())["verdict"]
    after = text[text.rindex(" ".join(verdict.split()[:4])):]
    assert len(after) < 4000 and len(text) < 20_000, text
    assert not re.search(r"gcs_server|SIGTERM|Stopped all|symmetric|Traceback", text), text


@pytest.mark.parametrize("more, said", [
    (("--nodes", "3"), "--nodes 3 is more than there are: partition main has 2 nodes with 1 CPU each"),
    (("--time", "2:00:00"), "--time 2:00:00 is longer than partition main allows, 1:00:00"),
    (("--cpus-per-node", "2"), "SLURM could never start this job: Requested node configuration is not available"),
    (("--partition", "gpu"), "invalid partition specified: gpu"),
])
def test_what_could_never_start_is_refused(cluster, shared, more, said):
    done = submit(cluster, shared, *more, check=False)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not cluster("squeue", "-h").strip()


def test_a_study_goes_on_by_itself_after_its_time_limit_and_after_a_lost_node(cluster, shared):
    """SLURM's shortest limit is minutes, of which the last two are the driver's to end in: asked to stop by the same
    signal, sent now, it requeues itself as it would then."""
    number = submit(cluster, shared, "--time", "30:00")
    wait_for(lambda: reports(shared) > 0, 400, shared)
    cluster("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: cluster.job(number).get("Restarts") == "1", 200, shared)
    assert "stopping before the time limit" in log(shared) and "requeued: the study goes on" in log(shared)
    before = reports(shared)
    wait_for(lambda: reports(shared) > before, 600, shared)
    cluster.kill_node("n2")
    wait_for(lambda: cluster.job(number).get("Restarts") == "2", 200, shared)
    cluster.start_node("n2")
    wait_for(lambda: "export" in log(shared) and (shared / "study" / "export").is_dir(), 1200, shared)
    ended = time.monotonic()
    wait_for(lambda: cluster.job(number)["JobState"] not in ("RUNNING", "COMPLETING"), 100, shared)
    assert cluster.job(number)["JobState"] == "COMPLETED", log(shared)
    assert time.monotonic() - ended < 45  # the other node would have held on for 75 to 90 s
    check_finished(shared)


def test_a_job_that_is_stopped_by_hand_is_not_requeued(cluster, shared):
    number = submit(cluster, shared, "--time", "30:00")
    wait_for(lambda: reports(shared) > 0, 400, shared)
    cluster("scancel", "--batch", "--signal=TERM", number)
    wait_for(lambda: cluster.job(number)["JobState"] not in ("RUNNING", "COMPLETING"), 200, shared)
    job = cluster.job(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "130:0", "0")
    assert "submit this script again to continue" in log(shared)


def test_a_job_that_may_not_requeue_itself_says_so_at_its_limit(cluster, shared):
    number = submit(cluster, shared, "--time", "30:00", "--requeues", "0")
    wait_for(lambda: reports(shared) > 0, 400, shared)
    cluster("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: cluster.job(number)["JobState"] not in ("RUNNING", "COMPLETING"), 200, shared)
    assert cluster.job(number)["ExitCode"] == "130:0" and cluster.job(number)["Restarts"] == "0"
    assert "not requeued: 0 times are the limit (--requeues)" in log(shared)

import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from running import AUDIT, ONE_AT_A_TIME, SECOND_TEACHER, kdstudy, with_set

from kdstudy.trainables.images import ImageSet

# Several test processes share the cores: one thread each, as the trials have.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers give way to all other processes; beside tests that compute, a study would take five times as long.
os.environ.setdefault("RAY_worker_niceness", "0")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # What a shell starts in the background ignores Ctrl-C, and so would what that starts, which tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take long")
    parser.addoption("--minutes", type=float, help="begin no test after so many minutes; which ones these are changes "
                                                   "from commit to commit")


# The longest, some of them with --slow alone. Begun last, one of them would keep a single process busy while the others
# have ended.
LONGEST = ("test_study.py", "test_series.py", "test_preflight.py", "test_submit.py", "test_placement.py",
           "test_browser.py", "test_bad_input.py", "test_received.py", "test_parallel.py", "test_faults.py",
           "test_sections.py", "test_sensitivity.py")


TIME_IS_OVER = "no time left: --minutes is over"
BEGUN = time.monotonic()


def pytest_collection_modifyitems(config, items):
    ranks = {path: _rank(path, group) for path, group in itertools.groupby(items, lambda item: item.path)}
    if config.getoption("--minutes"):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=config.rootpath, capture_output=True, text=True)
        commit = asked.stdout.strip()
        ranks = {path: hashlib.sha256(f"{commit} {path.name}".encode()).digest() for path in ranks}
    items.sort(key=lambda item: ranks[item.path])  # stable: the tests of a file stay together
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes and time.monotonic() - BEGUN > 60 * minutes:
        pytest.skip(TIME_IS_OVER)


def pytest_terminal_summary(terminalreporter):
    late = sum(TIME_IS_OVER in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if late:
        terminalreporter.write_line(f"{late} tests were left out, since --minutes was over")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process takes a whole file, whose tests share what they need. The faults take minutes each, one by one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_faults.py" in nodeid else super()._split_scope(nodeid)

    return ByFile(config, log)


def _rank(path, tests):
    if path.name in LONGEST:
        return LONGEST.index(path.name)
    # One process makes the finished study, and the others would only wait for it: their turn is when it is there.
    return len(LONGEST) + any("finished" in test.fixturenames for test in tests)


@pytest.fixture
def images() -> ImageSet:
    """48 random grey images of 8x8 pixels in 4 classes, brighter where the class says so."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 4
    pixels = rng.integers(0, 120, (48, 1, 8, 8))
    for label in range(4):
        pixels[labels == label, :, 2 * label : 2 * label + 2] += 120
    return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64))


def _made_once(name, command, folders, worker_id, begin_with=None):
    """A study run to its end by one command, and what that printed. Run once for all test processes; each has its own
    copy. It goes on from what was made under the name `begin_with`, where that is given."""
    shared = folders.getbasetemp().parent if worker_id != "master" else folders.getbasetemp()
    made, home = shared / f"{name}-for-all", folders.mktemp(name)
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "printed.txt").exists():
            made.mkdir(exist_ok=True)
            if begin_with:
                shutil.copytree(shared / f"{begin_with}-for-all" / "studies", made / "studies",
                                dirs_exist_ok=True)
            (made / "printed.txt").write_text(kdstudy("run", *command, cwd=made).stdout)
    shutil.copytree(made / "studies", home / "studies")
    return home / "studies" / "digits-smoke", (made / "printed.txt").read_text()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The smoke study of digits, and what its command printed."""
    return _made_once("finished", ONE_AT_A_TIME, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def extended(finished, tmp_path_factory, worker_id):
    """The finished study, run again with a second teacher and an audit."""
    command = [*ONE_AT_A_TIME, *with_set([*SECOND_TEACHER, *AUDIT])]
    return _made_once("extended", command, tmp_path_factory, worker_id, begin_with="finished")[0]


@pytest.fixture(scope="session")
def synthetic_study(tmp_path_factory):
    """A study whose every stage is done, of models that were never trained."""
    from synthetic import write_finished

    return write_finished(tmp_path_factory.mktemp("synthetic") / "digits-smoke")


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """An empty folder, with a cache of its own, in which the commands of a module's tests are given."""
    home, earlier = tmp_path_factory.mktemp("apart"), Path.cwd()
    (home / "work").mkdir()
    os.chdir(home / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSTUDY_CACHE", str(home / "cache"))
        yield home / "work"
    os.chdir(earlier)

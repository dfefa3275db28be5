"""`kdstudy submit` and `fetch`: jobs on real Ray clusters of one machine, whose Python has no kdstudy."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from running import KDSTUDY, kdstudy, results_of, wait_until
from synthetic import here, is_one_line

from kdstudy.config.load import load_study
from kdstudy.launch import common as launch
from kdstudy.launch.ray_job import Log
from kdstudy.store.record import Record

pytest.importorskip("aiohttp_cors", reason="a Ray head takes jobs with ray[default] only")

TOKEN = "the-token-of-this-cluster"
# A study in which little is trained: what is watched here is what is around it.
SMALL = ["digits", "--smoke", *(word for setting in (
    "train.epochs=9", "search.trials=3", "search.baseline_trials=3", "search.protected=1",
    "search.baseline_protected=1", "search.checkpoint_every=1", "views.count=2", "confirm.seeds=1",
) for word in ("--set", setting))]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def head(**variables):
    """A Ray head with two CPUs on this machine, as `ray start --head` makes it; the environment of its users.

    Its Python sees what is installed for this one, but not a kdstudy that is installed from where it lies.
    """
    folder = Path(tempfile.mkdtemp(prefix="kd"))  # short, for Ray's sockets
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    there = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(there.strip()) / "installed.pth").write_text(sysconfig.get_path("purelib"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
    dashboard = free_port()
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
               "--node-ip-address", "127.0.0.1", "--port", str(free_port()), "--dashboard-port", str(dashboard),
               "--dashboard-agent-listen-port", str(free_port()), "--num-cpus", "2"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=clean | variables | {
            "PATH": f"{python.parent}:/usr/bin:/bin", "RAY_TMPDIR": str(folder),
            "KDSTUDY_CACHE": str(folder / "cache")})
    try:
        wait_until(process, lambda: "block forever" in (folder / "log").read_text())
        yield clean | variables | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        process.terminate()
        process.wait(200)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def guarded():
    with head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as environment:
        yield environment


@pytest.fixture(scope="module")
def trusting():
    with head(RAY_AUTH_MODE="disabled") as environment:
        yield environment


@pytest.fixture
def submit(tmp_path):
    """Starts `kdstudy submit` as a process of its own, whose output goes to tmp_path/log."""
    left = []

    def start(environment, *words):
        with open(tmp_path / "log", "w") as log:
            left.append(subprocess.Popen([*KDSTUDY, "submit", *words], cwd=tmp_path, env=environment, stdout=log,
                                         stderr=log))
        return left[-1]

    yield start
    for process in left:
        if process.poll() is None:
            process.kill()


def jobs(environment, *words):
    return subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "job", *words], env=environment, text=True,
                          capture_output=True, timeout=400)


def job_in(text):
    return re.search(r"^job    (\S+) at http", text, re.MULTILINE)[1]


def reports(study):
    """Every report of every trial, as (stage, trial, epoch)."""
    return [(file.parent.name, number, report["epoch"]) for file in sorted(study.glob("*/record.jsonl"))
            for number, trial in Record(file).trials.items() for report in trial.reports]


def raw_reports(study):
    """Likewise, but as often as they were written."""
    lines = [(file.parent.name, json.loads(line)) for file in study.glob("*/record.jsonl")
             for line in file.read_text().splitlines()]
    return [(stage, event["trial"], event["epoch"]) for stage, event in lines if event["event"] == "report"]


# -- a job, watched, stopped, and gone on with -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_is_watched_stopped_and_gone_on_with_by_a_second_submission(guarded, submit, tmp_path):
    """On a cluster with a token. Nothing is trained twice, and what comes home is a study like any other."""
    study = tmp_path / "studies" / "mine"
    first = submit(guarded, *SMALL, "--dir", str(study))
    wait_until(first, lambda: len(raw_reports(study)) >= 5)
    stopped = jobs(guarded, "stop", job_in((tmp_path / "log").read_text()))
    assert stopped.returncode == 0, stopped.stderr
    assert first.wait(200) == 130
    said = (tmp_path / "log").read_text()
    assert "kdstudy: stopped; finished work is kept" in said  # the driver's own word: it was not just killed
    assert said.endswith(f"kdstudy: the job was stopped; finished work is kept in {study}. Submit the study again "
                         "to continue\n")
    before = raw_reports(study)

    assert submit(guarded, *SMALL, "--dir", str(study)).wait(600) == 0, (tmp_path / "log").read_text()
    after = raw_reports(study)
    assert len(after) == len(set(after)) > len(before) and set(before) <= set(after)
    said = (tmp_path / "log").read_text()
    assert "8/8 export           ✓" in said and results_of(study)["verdict"] in said

    kdstudy("fetch", study, tmp_path / "home", cwd=tmp_path)
    assert results_of(tmp_path / "home") == results_of(study)
    again = kdstudy("run", tmp_path / "home", cwd=tmp_path).stdout
    assert "Nothing to do" in again


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_is_gone_on_with_by_a_second_submission(trusting, submit, tmp_path):
    study = tmp_path / "studies" / "mine"
    first = submit(trusting, *SMALL, "--dir", str(study))
    wait_until(first, lambda: len(raw_reports(study)) >= 5)
    os.kill(driver_of(study), signal.SIGKILL)
    assert first.wait(200) == 137
    assert "the driver was killed by signal 9; finished work is kept in" in (tmp_path / "log").read_text()
    assert submit(trusting, *SMALL, "--dir", str(study)).wait(600) == 0, (tmp_path / "log").read_text()
    after = raw_reports(study)
    assert len(after) == len(set(after)) == len(reports(study))


def driver_of(study):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if words[1:4] == ["-m", "kdstudy", "run"] and str(study) in words:
                return int(path.parent.name)
    raise AssertionError("there is no driver")


@pytest.mark.slow
def test_who_stops_watching_stops_no_job_and_its_own_functions_go_along(trusting, submit, tmp_path):
    """On a cluster without a token, with a teacher from a file here that imports another one."""
    study = tmp_path / "studies" / "mine"
    (tmp_path / "my_net.py").write_text(
        "import timm\nfrom my_sizes import WIDTH\n\n\ndef net(num_classes, in_chans, **arguments):\n"
        "    return timm.create_model('vit_tiny_patch16_224', num_classes=num_classes, in_chans=in_chans, img_size=8,\n"
        "                             patch_size=4, embed_dim=WIDTH, depth=1, num_heads=3)\n")
    (tmp_path / "my_sizes.py").write_text("WIDTH = 12\n")
    watching = submit(trusting, *SMALL, "--dir", str(study), "--until", "teacher", "--set", "teacher.model=my_net:net",
                      "--set", "teacher.args={}", "--set", "teacher.image_size=8")
    wait_until(watching, lambda: "Running entrypoint" in (tmp_path / "log").read_text())
    watching.send_signal(signal.SIGINT)
    assert watching.wait(200) == 130
    said = (tmp_path / "log").read_text()
    again = re.search(r"the job goes on\. To follow it again: ray job (logs .*)", said)[1].split()
    seen = jobs(trusting, *again)
    assert "1/8 teacher          ✓" in seen.stdout, seen.stdout + seen.stderr


@pytest.mark.slow
def test_a_driver_that_refuses_the_study_ends_the_command_as_it_ended_itself(trusting, submit, tmp_path):
    assert submit(trusting, "digits", "--dir", str(tmp_path / "mine"), "--set", "data.source=/nowhere").wait(400) == 2
    said = (tmp_path / "log").read_text().splitlines()
    assert said[-1].startswith("kdstudy: data.source = '/nowhere' is neither a known name nor an existing "), said


# -- clusters that cannot be used --------------------------------------------------------------------------------------


def refused(monkeypatch, address, *more, **variables):
    """The one line, said soon, with which a submission is refused."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    code, out, err = here("submit", "digits", "--dir", "/shared/mine", *(["--address", address] if address else []),
                          *more)
    assert (code, out) == (2, "") and is_one_line(err), err
    assert time.monotonic() - started < 25
    return err.removeprefix("kdstudy: ").strip()


@pytest.mark.slow
def test_a_missing_or_wrong_token_says_which_variables_to_set(guarded, monkeypatch):
    address = guarded["RAY_API_SERVER_ADDRESS"]
    remedy = ("; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that it was started "
              "with, unless that is the one in ~/.ray/auth_token")
    assert refused(monkeypatch, address) == f"the Ray cluster at {address} requires a token{remedy}"
    wrong = subprocess.run([*KDSTUDY, "submit", "digits", "--dir", "/shared/mine"], text=True, capture_output=True,
                           env=guarded | {"RAY_AUTH_TOKEN": "the-token-of-another-one"}, timeout=60)
    assert (wrong.returncode, wrong.stderr) == (2, f"kdstudy: the Ray cluster at {address} refuses the token{remedy}\n")


@pytest.fixture
def silent():
    """The address of something that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_dashboard_that_is_not_there_is_said_soon(monkeypatch, silent):
    monkeypatch.setattr("kdstudy.launch.ray_job.ANSWER_SECONDS", 2)
    for address in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid:8265", silent):
        assert refused(monkeypatch, address).startswith(f"no Ray dashboard answers at {address}; check --address "
                                                        "(http://HOST:8265, as `ray start --head` prints it)")


def test_what_is_no_dashboard_is_said_to_be_none(monkeypatch):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert refused(monkeypatch, address).startswith(f"the server at {address} is not a Ray dashboard; ")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("address", "variables", "said"), [
    (None, {}, "--address is needed: the cluster's dashboard, http://HOST:8265"),
    ("head:6379", {}, "the address 'head:6379' is not a dashboard's http://HOST:PORT, as `ray start --head` prints"),
    ("ray://head:10001", {}, "the address 'ray://head:10001' is not a dashboard's http://HOST:PORT"),
    (None, {"RAY_ADDRESS": "head:6379"}, "the address 'head:6379' is not a dashboard's http://HOST:PORT"),
])
def test_an_address_that_is_no_dashboards_is_refused(monkeypatch, address, variables, said):
    assert refused(monkeypatch, address, **variables).startswith(said)


# -- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "said"), [
    (["--dir", "studies/mine"], "--dir studies/mine is relative"),
    (["--set", "data.source=images"], "data.source = 'images' is relative"),
    (["--set", "student.pretrained=w.pth"], "student.pretrained = 'w.pth' is relative"),
    (["--set", "search.warm_start=studies/other"], "search.warm_start = 'studies/other' is relative"),
    (["--set", "student.model=nowhere:net"], "student.model = 'nowhere:net' cannot be imported: No module named"),
    (["--set", "search.trials=many"], "search.trials = 'many': must be a whole number"),
    (["--env", "NOWHERE_SET"], "--env NOWHERE_SET: NOWHERE_SET is not set here"),
    (["--nodes", "2"], "--nodes does not apply to --to ray, only to --to slurm"),
])
def test_what_could_not_work_there_is_refused_here(monkeypatch, more, said):
    assert refused(monkeypatch, "http://127.0.0.1:1", *more).startswith(said)


def test_a_study_that_was_never_started_needs_a_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = here("submit", "digits", "--address", "http://127.0.0.1:1")
    assert code == 2 and is_one_line(err) and "--dir is needed: the absolute path of a folder that all nodes" in err


def test_what_is_shipped_is_small_and_runs_without_an_installation(tmp_path):
    config = load_study("cifar100-small", ("search.trials=44",))
    launch.write_working_dir(config, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2e6
    shown = subprocess.run([sys.executable, "-m", "kdstudy", "presets"], cwd=tmp_path, text=True, capture_output=True)
    assert "cifar100-small" in shown.stdout
    where = subprocess.run([sys.executable, "-c", "import kdstudy; print(kdstudy.__file__)"], cwd=tmp_path, text=True,
                           capture_output=True).stdout
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert load_study(str(tmp_path / "study.toml")) == config


def test_pip_installs_what_kdstudy_needs_but_not_ray():
    needed = launch.requirements("/shared/mine")
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in needed}
    assert {"torch", "timm", "optuna", "pydantic"} <= names
    assert not names & {"ray", "pytest", "s3fs", "gcsfs", "kaleido"}
    assert any(requirement.startswith("torch>=") for requirement in needed)
    [more] = set(launch.requirements("s3://bucket/mine")) - set(needed)
    assert more.startswith("s3fs>=")


# -- the log -----------------------------------------------------------------------------------------------------------


LINES = ("Running\n2/8 baseline         … ━━╌╌ 1/6 trials 0:15\n", "2/8 baseline         … ━━━╌ 2/", "6 trials 0:30\n",
         "2/8 baseline         ✓ 6 trials 0:41\n\nverdict")


def shown(**terminal):
    console = Console(highlight=False, width=100, **terminal)
    with console.capture() as captured, Log(console) as log:
        for chunk in LINES:
            log.write(chunk)
    return captured.get()


def test_in_a_log_every_line_comes_as_it_is():
    assert shown(force_terminal=False) == "".join(LINES) + "\n"


def test_on_a_terminal_progress_takes_the_place_of_progress():
    """What stays when the control codes have done their work: what lies before an erased line is gone."""
    left = [re.split(r"\x1b\[2K", line)[-1] for line in shown(force_terminal=True).split("\n")]
    left = [re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", line) for line in left]
    text = "\n".join(left)
    assert "Running" in text and "✓ 6 trials 0:41" in text and "verdict" in text
    assert "0:15" not in text and "0:15" in shown(force_terminal=True)


# -- brought home ------------------------------------------------------------------------------------------------------


def test_a_fetched_study_is_whole_and_its_results_are_small(synthetic_study, tmp_path):
    code, out, err = here("fetch", str(synthetic_study), str(tmp_path / "all"))
    assert code == 0 and out.startswith(f"{tmp_path}/all: "), err
    assert relative(tmp_path / "all") == relative(synthetic_study)
    code, _, err = here("fetch", str(synthetic_study), str(tmp_path / "results"), "--results")
    assert code == 0, err
    left_out = relative(synthetic_study) - relative(tmp_path / "results")
    assert left_out and all(name.endswith((".safetensors", ".npy", ".db")) for name in left_out)
    for copy in ("all", "results"):
        assert here("status", str(tmp_path / copy))[0] == 0
        assert here("report", str(tmp_path / copy))[0] == 0
    assert here("export", str(tmp_path / "all"), str(tmp_path / "student"))[0] == 0


def relative(folder):
    """A study's files, but for drafts and locks."""
    inside = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in inside if not any(part.startswith(".") for part in path.parts)}


def test_nothing_is_fetched_over_something_else(synthetic_study, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    code, _, err = here("fetch", str(synthetic_study), str(tmp_path / "taken"))
    assert code == 2 and is_one_line(err) and "is not an empty folder; choose another one" in err
    assert os.listdir(tmp_path / "taken") == ["mine"] and os.listdir(tmp_path) == ["taken"]

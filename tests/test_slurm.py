"""What `kdstudy submit --to slurm` hands to sbatch: read as SLURM reads it, and run with stand-ins for its commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from running import wait_until
from synthetic import here, is_one_line

from kdstudy.config.load import load_study
from kdstudy.launch import slurm

# Of sbatch(1), those that a script of ours may use, and others that users ask for.
SBATCH_OPTIONS = {
    "account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error",
    "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "job-name", "licenses",
    "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist", "nodes", "no-requeue", "ntasks",
    "ntasks-per-node", "open-mode", "output", "partition", "prefer", "qos", "requeue", "reservation", "signal",
    "switches", "time", "time-min", "tmp", "wckey",
}

SRUN = """#!/bin/bash
# One node: the command once. Its `ray` is the stand-in, whatever the script has put before it.
while [[ $1 == --* ]]; do echo "$1" >> "$RECORDS/srun"; shift; done
export PATH="$RECORDS/bin:$PATH"
exec "$@"
"""
RAY = """#!{python}
# `ray symmetric-run` on one node, but for the `ray stop` at its end, which would stop every Ray of this machine.
import json, os, subprocess, sys, time
own, entry = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
records = os.environ["RECORDS"]
said = {{name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR")}}
with open(records + "/ray", "a") as file:
    file.write(json.dumps({{"own": own, "entry": entry, "environment": said}}) + "\\n")
if os.environ.get("WITHOUT_RAY"):
    sys.exit(subprocess.run(entry).returncode)
host, port = own[own.index("--address") + 1].split(":")
start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--head", "--node-ip-address", host,
         "--port", port, *(word for word in own if word.startswith("--num-cpus="))]
with open(records + "/head", "w") as log:
    head = subprocess.Popen(start, stdout=log, stderr=log)
while "block forever" not in open(records + "/head").read():
    assert head.poll() is None, open(records + "/head").read()
    time.sleep(0.1)
code = subprocess.run(entry).returncode
head.terminate()
head.wait(200)
sys.exit(code)
"""
# In the place of `python -m kdstudy`: says what it was started with, and takes a while to end where it is asked to.
DRIVER = """#!{python}
import json, os, signal, sys, time
if sys.argv[1] == "-c":
    exec(sys.argv[2])
    sys.exit()
def stop(number, frame):
    time.sleep(1)
    sys.exit(int(os.environ.get("STOP_CODE", "130")))
signal.signal(signal.SIGTERM, stop)
words = sys.argv[1:]
with open(os.environ["RECORDS"] + "/driver", "w") as file:
    json.dump({{"words": words, "settings": open(words[3]).read()}}, file)
time.sleep(float(os.environ["DRIVER_SECONDS"]))
sys.exit(int(os.environ["DRIVER_CODE"]))
"""


def script(*more):
    code, out, err = here("submit", "digits", "--to", "slurm", "--dir", "/shared/my studies/digits", "--print", *more)
    assert code == 0, err
    return out


def directives(text):
    """As sbatch reads them: up to the first line that is a command."""
    found = {}
    for line in text.splitlines()[1:]:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert key not in found, f"{key} twice"
            found[key] = value
    return found


def executable(path, content):
    path.write_text(content)
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """Runs a script as SLURM would on the one node that it allocates; gives the process."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "srun", SRUN)
    executable(tmp_path / "bin" / "scontrol", '#!/bin/sh\n[ "$1 $2" != "show hostnames" ] || echo "$3"\n'
               '[ "$1" != requeue ] || echo "$2" >> "$RECORDS/requeued"\n')
    executable(tmp_path / "bin" / "ray", RAY.format(python=sys.executable))
    left = []

    def run(text, **environment):
        number = str(os.getpid())
        assert not os.path.exists(f"/tmp/kd-{number}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RECORDS": str(tmp_path), "SLURM_JOB_ID": number,
            "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2",
            "HOME": str(tmp_path)} | environment
        with open(tmp_path / "log", "a") as log:
            process = subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, text=True, env=environment, stdout=log,
                                       stderr=log, cwd=tmp_path)
        left.append(process)
        process.stdin.write(text)
        process.stdin.close()
        return process

    yield run
    for process in left:
        if process.poll() is None:
            process.kill()


@pytest.fixture
def driver(tmp_path, cluster, monkeypatch):
    """Puts a stand-in in the place of Python, so that what is around it can be seen without it."""
    executable(tmp_path / "bin" / "python", DRIVER.format(python=sys.executable))
    for name, value in {"WITHOUT_RAY": "1", "DRIVER_SECONDS": "0", "DRIVER_CODE": "0"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("more", [
    (), ("--nodes", "4", "--gpus-per-node", "8", "--cpus-per-node", "64", "--time", "2-00:00:00", "--partition", "gpu",
         "--account", "vision", "--sbatch", "qos=high", "--sbatch", "constraint=a100|h100"),
    ("--smoke", "--until", "distill", "--setup", "module load python", "--setup", "source ~/venv/bin/activate"),
])
def test_bash_and_sbatch_can_read_the_script(more):
    text = script(*more)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert text.startswith("#!/bin/bash\n")
    assert set(directives(text)) <= SBATCH_OPTIONS


def test_the_nodes_are_the_jobs_own_and_only_the_driver_is_asked_to_stop_before_the_limit():
    asked = directives(script("--nodes", "4", "--gpus-per-node", "8", "--cpus-per-node", "64", "--time", "2-00:00:00"))
    assert asked["exclusive"] == "" and asked["nodes"] == "4" and asked["ntasks-per-node"] == "1"
    assert asked["gpus-per-node"] == "8" and asked["cpus-per-task"] == "64" and asked["time"] == "2-00:00:00"
    assert asked["mem"] == "0" and "requeue" in asked and asked["open-mode"] == "append"
    shell, seconds = re.fullmatch(r"(B:)?USR1@(\d+)", asked["signal"]).groups()
    assert shell and int(seconds) >= 60


def test_an_option_of_the_users_own_has_the_last_word():
    asked = directives(script("--sbatch", "exclusive=user", "--sbatch", "--qos=high", "--sbatch", "time=1:00:00"))
    assert (asked["exclusive"], asked["qos"], asked["time"]) == ("user", "high", "1:00:00")


def test_setup_takes_the_place_of_this_virtual_environment():
    assert "module load python\nconda activate mine\n" in script("--setup", "module load python", "--setup",
                                                                 "conda activate mine")
    for text, there in ((script(), True), (script("--setup", "true"), False)):
        assert (sys.prefix in text) == there


def test_the_script_runs_the_very_study_once_with_what_ray_needs(cluster, driver, tmp_path):
    text = script("--set", "search.trials=44", "--until", "distill", "--setup", "true")
    assert cluster(text).wait(30) == 0, (tmp_path / "log").read_text()
    started = json.loads((tmp_path / "driver").read_text())
    (tmp_path / "study.toml").write_text(started["settings"])
    assert load_study(str(tmp_path / "study.toml")) == load_study("digits", ("search.trials=44",))
    ran = json.loads((tmp_path / "ray").read_text())
    own = ran["own"]
    address = own[own.index("--address") + 1]
    assert started["words"][:3] == ["-m", "kdstudy", "run"]
    assert started["words"][4:] == ["--dir", "/shared/my studies/digits", "--until", "distill", "--address", address]
    assert own[0] == "symmetric-run" and own[own.index("--min-nodes") + 1] == "1" and "--num-cpus=2" in own
    # What is given beside these goes to `ray start` on every node, which refuses on one what only a head may have.
    assert {word.split("=")[0] for word in own if word.startswith("--")} == {"--address", "--min-nodes", "--num-cpus"}
    assert ran["environment"]["RAY_AUTH_MODE"] == "token" and len(ran["environment"]["RAY_AUTH_TOKEN"]) >= 32
    assert not os.path.exists(ran["environment"]["RAY_TMPDIR"])


def test_each_submission_has_its_own_token(cluster, driver, tmp_path):
    text = script("--setup", "true")
    for _ in range(2):
        assert cluster(text).wait(30) == 0
    first, second = [json.loads(line)["environment"]["RAY_AUTH_TOKEN"]
                     for line in (tmp_path / "ray").read_text().splitlines()]
    assert first != second and first not in text


def test_it_ends_as_the_driver_does(cluster, driver, tmp_path):
    assert cluster(script("--setup", "true"), DRIVER_CODE="2").wait(30) == 2, (tmp_path / "log").read_text()


def test_before_the_limit_the_driver_ends_in_order(cluster, driver, tmp_path):
    """SLURM sends the signal to the shell alone: the driver gets it from there, and is waited for."""
    job = cluster(script("--setup", "true"), DRIVER_SECONDS="60")
    wait_until(job, (tmp_path / "driver").exists, 30)
    sent = time.monotonic()
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 130, (tmp_path / "log").read_text()
    assert 1 <= time.monotonic() - sent < 20
    assert "submit this script again to continue" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("restarts", "code", "is_requeued"), [("0", 130, True), ("2", 130, False), ("0", 0, False)])
def test_at_the_limit_a_job_requeues_itself_unless_it_is_done_or_may_not(cluster, driver, tmp_path, restarts, code,
                                                                         is_requeued):
    job = cluster(script("--setup", "true", "--requeues", "2"), DRIVER_SECONDS="60", STOP_CODE=str(code),
                  SLURM_RESTART_COUNT=restarts)
    wait_until(job, (tmp_path / "driver").exists, 30)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == (0 if is_requeued else code), (tmp_path / "log").read_text()
    assert (tmp_path / "requeued").exists() == is_requeued
    assert ("not requeued: 2 times are the limit (--requeues)" in (tmp_path / "log").read_text()) == (restarts == "2")


@pytest.mark.parametrize(("text", "minutes"), [
    ("30", 30), ("30:30", 30.5), ("2:00:00", 120), ("1-0", 1440), ("1-2", 1560), ("1-2:03", 1563),
    ("2-00:00:30", 2880.5), ("infinite", None), ("UNLIMITED", None), ("1:2:3:4", None),
])
def test_a_time_limit_is_read_as_sbatch_reads_it(text, minutes):
    assert slurm._minutes(text) == minutes


def test_the_functions_of_ones_own_are_found_on_the_nodes(tmp_path, monkeypatch):
    (tmp_path / "own nets.d").mkdir()
    (tmp_path / "own nets.d" / "slurmnets.py").write_text("def net(num_classes, in_chans):\n    ...\n")
    monkeypatch.syspath_prepend(tmp_path / "own nets.d")
    lines = script("--set", "student.model=slurmnets:net", "--set", "student.args={}", "--setup", "true").splitlines()
    [line] = [line for line in lines if line.startswith("export PYTHONPATH=")]
    shown = subprocess.run(["bash", "-c", f"{line}; python3 -c 'import slurmnets; print(slurmnets.__file__)'"],
                           capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert shown.stdout.strip() == str(tmp_path / "own nets.d" / "slurmnets.py"), shown.stderr


@pytest.mark.slow
def test_a_study_runs_on_the_ray_that_the_job_starts(cluster, tmp_path):
    """As printed, with this virtual environment, a real Ray and its token."""
    code, text, err = here("submit", "digits", "--smoke", "--to", "slurm", "--dir", str(tmp_path / "studies" / "mine"),
                           "--until", "teacher", "--print")
    assert code == 0, err
    assert cluster(text).wait(500) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "studies" / "mine" / "study.toml").is_file()
    assert "teacher          ✓" in (tmp_path / "log").read_text()


def test_it_is_handed_to_sbatch_with_words_on_how_to_go_on(tmp_path, monkeypatch):
    executable(tmp_path / "sbatch", f"#!/bin/sh\necho $@ > {tmp_path}/words\ncat > {tmp_path}/script\necho '71;one'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, out, err = here("submit", "digits", "--to", "slurm", "--dir", "/shared/mine")
    assert code == 0, err
    assert (tmp_path / "script").read_text().startswith("#!/bin/bash\n")
    for words in ("job    71\n", "scancel --batch --signal=TERM 71", "kdstudy fetch /shared/mine FOLDER"):
        assert words in out


@pytest.mark.parametrize(("more", "said"), [
    (("--dir", "studies/mine"), "--dir studies/mine is relative"),
    (("--dir", "s3://bucket"), "names no folder"),
    (("--set", "teacher.model=", "--set", "teacher.trained=exports/a"), "teacher.trained.0 = 'exports/a' is relative"),
    (("--sbatch", "comment=two words"), "--comment=two words is not an sbatch option"),
    (("--sbatch", "qos=a\nrm -rf x"), "is not an sbatch option"),
    (("--partition", "$(reboot)"), "is not an sbatch option"),
    (("--image", "x"), "--image does not apply to --to slurm, only to --to kuberay"),
    (("--detach",), "--detach does not apply to --to slurm, only to --to ray"),
])
def test_what_cannot_work_is_said_in_one_line(more, said):
    code, out, err = here("submit", "digits", "--to", "slurm", "--dir", "/shared/mine", "--print", *more)
    assert (code, out) == (2, "") and is_one_line(err) and said in err, err


def test_an_sbatch_that_refuses_or_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    submit = ("submit", "digits", "--to", "slurm", "--dir", "/shared/mine")
    code, _, err = here(*submit)
    assert code == 2 and is_one_line(err) and "sbatch is not on this machine's PATH" in err
    executable(tmp_path / "sbatch", "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    code, _, err = here(*submit)
    assert code == 2 and is_one_line(err) and "invalid partition" in err

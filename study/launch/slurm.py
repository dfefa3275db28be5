"""Run a study as a SLURM job: a batch script that starts Ray on the job's nodes and runs the study. Submitting it again
resumes the study."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kdstudy.config.series import Series
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.launch import common as launch

STOP_SECONDS = 120  # before the time limit, so that the driver can end its trials cleanly
LIMIT_SIGNAL = "USR1"  # of the time limit; a TERM comes from the user, who does not want the job requeued
PATIENCE = 30  # seconds for Ray on the other nodes to end, before it is killed
INTERRUPTED = 130  # the driver's exit code if it was asked to stop before the study's end
REQUEUES = 20
END_OF_SETTINGS = "END_OF_SETTINGS"
DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[^\s'\"\\`$]+)?")

# $RAY_TMPDIR must be short, because socket paths are limited, and unique, because other users may own /tmp/ray.
# Ray needs a token: without one, any user of the cluster could run code through it.
# What Ray itself prints goes to a file: dozens of lines about processes that end would bury the verdict.
SCRIPT = """#!/bin/bash
# kdstudy: {name}. Submit this script again to continue the study if it was interrupted.
{directives}
# Keep Python from importing anything from the folder that this is submitted from.
export PYTHONSAFEPATH=1
{setup}
set -euo pipefail
export RAY_TMPDIR=/tmp/kd-$SLURM_JOB_ID
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# This script runs on the first node, which becomes the head.
rm -rf "$RAY_TMPDIR"
mkdir -p "$RAY_TMPDIR"
cat > "$RAY_TMPDIR/study.toml" <<'{end}'
{settings}{end}
hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=$(getent ahostsv4 "${{hosts[0]}}" | awk '!found && !/^127\./ {{ print $1; found = 1 }}' || true)
port=$(python -c 'import socket; free = socket.socket(); free.bind(("", 0)); print(free.getsockname()[1])')
address=${{head:-${{hosts[0]}}}}:$port

# Stop only the driver; Ray must run until the driver has ended.
requeue=
stop() {{
    kill -TERM "$(cat "$RAY_TMPDIR/driver")" || true
}}
trap 'echo "asked to stop; submit this script again to continue"; stop' TERM
trap 'echo "stopping before the time limit"; requeue=yes; stop' {signal}

# The driver's output, and nothing else, is this job's.
mkfifo "$RAY_TMPDIR/output"
cat "$RAY_TMPDIR/output" &
shown=$!

# One task per node. The first runs the study; then all end with `ray stop`, so the nodes must be the job's own.
srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 bash -c '
    trap "ending=yes" TERM
    mkdir -p "$RAY_TMPDIR"
    code=0 ending=
    exec 3>&2 2>/dev/null  # bash would report that Ray has been terminated
    ray symmetric-run --num-cpus="$SLURM_CPUS_ON_NODE" "$@" > "$RAY_TMPDIR/ray.log" 2>&1 || code=$?
    exec 2>&3
    [ -z "$ending" ] || ray stop > /dev/null 2>&1 || true  # SIGTERM has ended what would have called it
    if [ "$code" != 0 ] && [ -z "$ending" ] && [ ! -e "$RAY_TMPDIR/begun" ]; then
        echo "Ray on $(hostname) ended with code $code:"
        tail -n 20 "$RAY_TMPDIR/ray.log"
    fi
    if [ "$SLURM_PROCID" = 0 ]; then echo "$code" > "$RAY_TMPDIR/code"; else rm -rf "$RAY_TMPDIR"; fi
    [ -z "$ending" ] || code=0
    exit "$code"
' task --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    bash -c 'echo $$ > "$RAY_TMPDIR/driver"; : > "$RAY_TMPDIR/begun"; exec "$@" > "$RAY_TMPDIR/output" 2>&1' driver \
    {command} &
step=$!
while kill -0 "$step" 2>/dev/null && [ ! -e "$RAY_TMPDIR/code" ]; do
    sleep 1 &
    wait $! || true
done

# On the other nodes Ray would notice only after a minute or more that the head has gone.
for signal in TERM KILL; do
    scancel --signal=$signal "$SLURM_JOB_ID.0" 2>/dev/null || true
    for second in $(seq {patience}); do
        kill -0 "$step" 2>/dev/null || break 2
        sleep 1 &
        wait $! || true
    done
done
code=0
wait "$step" || code=$?
[ ! -e "$RAY_TMPDIR/code" ] || code=$(cat "$RAY_TMPDIR/code")
kill "$shown" 2>/dev/null || true
rm -rf "$RAY_TMPDIR"

if [ -n "$requeue" ] && [ "$code" = {interrupted} ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ]; then
        echo "not requeued: {requeues} times are the limit (--requeues); submit this script again to continue"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "requeued: the study goes on when SLURM starts this job again"
        exit 0
    fi
fi
exit "$code"
"""


@dataclass(frozen=True)
class Allocation:
    """The resources to request from SLURM.

    more: further sbatch options, KEY=VALUE or KEY, which take precedence. requeues: how many times the job may start
    again in all, since it requeues itself at its time limit."""

    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    more: tuple[str, ...] = ()
    requeues: int = REQUEUES

    def directives(self, name: str) -> list[str]:
        """Return the sbatch options. Raises UserError if an entry of `more` is not a valid option."""
        options = {"job-name": f"kdstudy-{name}", "output": f"kdstudy-{name}-%j.log", "open-mode": "append",
                   "nodes": self.nodes, "ntasks-per-node": 1, "exclusive": None, "mem": 0,
                   "signal": f"B:{LIMIT_SIGNAL}@{STOP_SECONDS}", "requeue": None, "time": self.time}
        options |= {key: value for key, value in (
            ("gpus-per-node", self.gpus_per_node), ("cpus-per-task", self.cpus_per_node),
            ("partition", self.partition), ("account", self.account)) if value is not None}
        for option in self.more:
            key, equals, value = option.removeprefix("--").partition("=")
            options[key] = value if equals else None
        lines = [key if value is None else f"{key}={value}" for key, value in options.items()]
        for line in lines:
            if not DIRECTIVE.fullmatch(line):
                raise UserError(f"--{line} is not an sbatch option; give KEY=VALUE, without spaces or quotes")
        return [f"#SBATCH --{line}" for line in lines]


def script(config: StudyConfig | Series, location: str, allocation: Allocation, *, until: str | None = None,
           setup: Sequence[str] = ()) -> str:
    """Return the complete batch script.

    location: the study's absolute path, shared by all nodes, or URI. setup: shell lines that put kdstudy and Ray on the
    PATH of every node; by default they activate this process's environment. Raises UserError.
    """
    run = launch.command('"$RAY_TMPDIR/study.toml"', shlex.quote(location), until, "--address", '"$address"')
    return SCRIPT.format(name=config.name, directives="\n".join(allocation.directives(config.name)),
                         setup="\n".join([*(setup or [_this_environment()]), *_own_paths(config)]),
                         settings=config.to_toml(), end=END_OF_SETTINGS, command=" ".join(run), signal=LIMIT_SIGNAL,
                         patience=PATIENCE, interrupted=INTERRUPTED, requeues=allocation.requeues)


def _this_environment() -> str:
    """Return the shell line that makes another shell use this process's `python` and `ray`."""
    activate = Path(sys.prefix) / "bin" / "activate"
    if activate.is_file() and sys.prefix != sys.base_prefix:
        return f"source {shlex.quote(str(activate))}"
    return f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"


def _own_paths(config: StudyConfig | Series) -> list[str]:
    """Return the shell line that lets the nodes import the user's own functions, if there are any."""
    folders = sorted({str(path.parent) for path in launch.own_modules(config)})
    return [f"export PYTHONPATH={shlex.quote(':'.join(folders))}${{PYTHONPATH:+:$PYTHONPATH}}"] if folders else []


def submit(content: str, location: str, allocation: Allocation, console: Console) -> None:
    """Submit a script with sbatch and print the commands to watch, stop and fetch it. Raises UserError if that fails,
    and if the job asks for what no node of the cluster has: it would stay pending for ever.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine's PATH; run the command on a login node of the cluster, or use "
                        "--print and submit the script there")
    _check_possible(content, allocation)
    done = subprocess.run(["sbatch", "--parsable"], input=content, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"sbatch rejected the script: {' '.join(done.stderr.split())[:300]}; see --sbatch KEY=VALUE")
    number = done.stdout.strip().split(";")[0]
    for line in (f"job    {number}", f"watch  squeue --job {number}; kdstudy status {shlex.quote(location)}",
                 f"stop   scancel --batch --signal=TERM {number}  (submit it again to continue)",
                 f"fetch  kdstudy fetch {shlex.quote(location)} FOLDER"):
        console.print(line, soft_wrap=True, markup=False)


def _check_possible(content: str, allocation: Allocation) -> None:
    """Raises UserError if SLURM says that it could never start the job."""
    tried = subprocess.run(["sbatch", "--test-only"], input=content, text=True, capture_output=True)
    partition = _partition(allocation.partition)
    has = partition.show() if partition else ""
    if tried.returncode:
        if partition and allocation.nodes > partition.nodes:
            raise UserError(f"--nodes {allocation.nodes} is more than there are: {has}")
        why = " ".join(tried.stderr.split()).removeprefix("allocation failure: ")[:300]
        raise UserError(f"SLURM could never start this job: {why}" + (f"; {has}" if has else "")
                        + "; see --nodes, --gpus-per-node, --cpus-per-node, --partition and --sbatch KEY=VALUE")
    if partition and (limit := _minutes(partition.limit)) is not None and (_minutes(allocation.time) or 0) > limit:
        raise UserError(f"--time {allocation.time} is longer than partition {partition.name} allows, "
                        f"{partition.limit}; the job requeues itself at its limit, so a shorter time loses nothing")


@dataclass(frozen=True)
class _Partition:
    """What sinfo says of a partition. limit: of its jobs' time, as sinfo writes it."""

    name: str
    nodes: int
    cpus: str
    gres: str
    limit: str

    def show(self) -> str:
        gres = f" and {self.gres}" if self.gres not in ("", "(null)") else ""
        return (f"partition {self.name} has {self.nodes} node{'s' if self.nodes > 1 else ''} with {self.cpus} "
                f"CPU{'' if self.cpus == '1' else 's'}{gres} each")


def _partition(name: str | None) -> _Partition | None:
    """The partition of that name, by default the one that SLURM uses; None if sinfo does not say."""
    if shutil.which("sinfo") is None:
        return None
    asked = subprocess.run(["sinfo", "--noheader", "--format=%P|%D|%c|%G|%l",
                            *([f"--partition={name}"] if name else [])], text=True, capture_output=True)
    rows = [line.split("|") for line in asked.stdout.splitlines() if line.count("|") == 4 and
            (name or line.split("|")[0].endswith("*"))]
    if not rows or not all(row[1].isdecimal() for row in rows):
        return None  # a partition of unlike nodes has a row for each kind
    return _Partition(rows[0][0].rstrip("*"), sum(int(row[1]) for row in rows), rows[0][2].rstrip("+"), rows[0][3],
                      rows[0][4])


def _minutes(text: str) -> float | None:
    """A time limit in minutes; None where there is none. As in sbatch(1): minutes, minutes:seconds,
    hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds."""
    days, dash, clock = text.partition("-") if "-" in text else ("0", "", text)
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (days, *parts)) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return 1440 * int(days) + 60 * hours + minutes + seconds / 60

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
END_OF_SETTINGS = "END_OF_SETTINGS"
DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[^\s'\"\\`$]+)?")

# $RAY_TMPDIR must be short, because socket paths are limited, and unique, because other users may own /tmp/ray.
# Ray needs a token: without one, any user of the cluster could run code through it.
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
mkdir -p "$RAY_TMPDIR"
cat > "$RAY_TMPDIR/study.toml" <<'{end}'
{settings}{end}
hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=$(getent ahostsv4 "${{hosts[0]}}" | awk '!found && !/^127\\./ {{ print $1; found = 1 }}' || true)
port=$(python -c 'import socket; free = socket.socket(); free.bind(("", 0)); print(free.getsockname()[1])')
address=${{head:-${{hosts[0]}}}}:$port

# Before the time limit, stop only the driver; Ray must run until the driver has ended.
stop() {{
    echo "stopping before the time limit; submit this script again to continue"
    kill -TERM "$(cat "$RAY_TMPDIR/driver")" || true
}}
trap stop TERM

# One task per node. The first runs the study; then all end with `ray stop`, so the nodes must be the job's own.
srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 bash -c '
    mkdir -p "$RAY_TMPDIR"
    trap "rm -rf $RAY_TMPDIR" EXIT
    ray symmetric-run --num-cpus="$SLURM_CPUS_ON_NODE" "$@"
' task --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" -- \\
    bash -c 'echo $$ > "$RAY_TMPDIR/driver"; exec "$@"' driver \\
    {command} &
step=$! code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
exit "$code"
"""


@dataclass(frozen=True)
class Allocation:
    """The resources to request from SLURM. more: further sbatch options, KEY=VALUE or KEY, which take precedence."""

    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    more: tuple[str, ...] = ()

    def directives(self, name: str) -> list[str]:
        """Return the sbatch options. Raises UserError if an entry of `more` is not a valid option."""
        options = {"job-name": f"kdstudy-{name}", "output": f"kdstudy-{name}-%j.log", "open-mode": "append",
                   "nodes": self.nodes, "ntasks-per-node": 1, "exclusive": None, "mem": 0,
                   "signal": f"B:TERM@{STOP_SECONDS}", "requeue": None, "time": self.time}
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
                         settings=config.to_toml(), end=END_OF_SETTINGS, command=" ".join(run))


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


def submit(content: str, location: str, console: Console) -> None:
    """Submit a script with sbatch and print the commands to watch, stop and fetch it. Raises UserError if that fails.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine's PATH; run the command on a login node of the cluster, or use "
                        "--print and submit the script there")
    done = subprocess.run(["sbatch", "--parsable"], input=content, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"sbatch rejected the script: {' '.join(done.stderr.split())[:300]}; see --sbatch KEY=VALUE")
    number = done.stdout.strip().split(";")[0]
    for line in (f"job    {number}", f"watch  squeue --job {number}; kdstudy status {shlex.quote(location)}",
                 f"stop   scancel --batch --signal=TERM {number}  (submit it again to continue)",
                 f"fetch  kdstudy fetch {shlex.quote(location)} FOLDER"):
        console.print(line, soft_wrap=True, markup=False)

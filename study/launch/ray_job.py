"""Run a study as a Ray job: submit it through a cluster's dashboard and follow its log."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdstudy.config.load import STUDY_FILE
from kdstudy.config.series import Series
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import InterruptedStudyError, StudyFailedError, UserError
from kdstudy.launch import common as launch
from kdstudy.tune.cluster import SET_TOKEN

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = re.compile(r"https?://[^\s/:]+(:\d+)?(/\S*)?")
ANSWER_SECONDS = 10.0
READY_SECONDS = 60.0  # for a starting head node to accept jobs
STOP_SECONDS = 60  # for the driver to end its trials cleanly; Ray's default is 3
LOST_SECONDS = 60.0  # without a connection to the dashboard before following a log fails
PROGRESS = re.compile(r"[\d+]+/\d+ .+ … ")  # a progress line of watch.display, which the next line replaces
TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk",
             "ray._private.runtime_env.packaging")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted job: its submission id, the dashboard's address, and the study folder or URI."""

    id: str
    address: str
    location: str

    @property
    def watch(self) -> str:
        return f"ray job logs --follow {self.id} --address {self.address}"

    @property
    def stop(self) -> str:
        return f"ray job stop {self.id} --address {self.address}"

    @property
    def fetch(self) -> str:
        return f"kdstudy fetch {shlex.quote(self.location)} FOLDER"


def submit(config: StudyConfig | Series, location: str, console: Console, *, address: str | None, until: str | None,
           pip: bool, environment: dict[str, str], detach: bool) -> None:
    """Run a study as a job on the cluster whose dashboard is at `address`, and follow its log unless `detach`.

    location: absolute path or URI of the study, as seen by the cluster. Raises UserError if the job cannot be
    submitted, StudyFailedError if Ray cannot run it, InterruptedStudyError if it is stopped or the user stops following
    it. If the driver fails, exits with the driver's exit code.
    """
    with tempfile.TemporaryDirectory(prefix="kdstudy-") as folder:
        launch.write_working_dir(config, Path(folder))
        runtime = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment}
        if pip:
            runtime["pip"] = launch.requirements(location)
        client = connect(address)
        job = Job(launch.job_name(config), client.get_address(), location)
        words = shlex.join(launch.command(STUDY_FILE, location, until))
        with _refusals(job.address):
            _hand_over(client, entrypoint=f"exec {words}", submission_id=job.id, runtime_env=runtime,
                       metadata={"study": config.name, "place": location})
    _announce(job, console)
    if not detach:
        watch(client, job, console)


def _hand_over(client: JobSubmissionClient, **job: Any) -> None:
    """Submit a job, retrying while the head node is still starting."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _announce(job: Job, console: Console) -> None:
    for line in (f"job    {job.id} at {job.address}", f"watch  {job.watch}",
                 f"stop   {job.stop}  (submit it again to continue)", f"fetch  {job.fetch}"):
        console.print(line, soft_wrap=True, markup=False)


# -- the dashboard ----------------------------------------------------------------------------------------------------


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client for the dashboard at `address`, RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Raises UserError."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError("--address is needed: the cluster's dashboard, http://HOST:8265")
    if not ADDRESS.fullmatch(address):
        raise UserError(f"the address {address!r} is not a dashboard's http://HOST:PORT, as `ray start --head` "
                        "prints it (port 8265 by default)")
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError("Ray Jobs need packages that are not installed here: pip install 'kdstudy[cluster]'")
    _check_answer(address)
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _refusals(address):
        return JobSubmissionClient(address)


def _check_answer(address: str) -> None:
    """Check that a dashboard responds, since Ray's own client would wait forever. Raises UserError."""
    import requests

    try:
        said = requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)
    except requests.RequestException:
        raise UserError(f"no Ray dashboard answers at {address}; check --address (http://HOST:8265, as `ray start "
                        "--head` prints it), that its head is up, and that ray[default] is installed there") from None
    if said.status_code not in (200, 401, 403) or (said.ok and "ray_version" not in said.text):
        raise UserError(f"the server at {address} is not a Ray dashboard; check --address (http://HOST:8265, as `ray "
                        "start --head` prints it)")


@contextlib.contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Turn the errors of Ray's client into a UserError of one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        what = "requires a token" if "Authentication required" in str(error) else "refuses the token"
        raise UserError(f"the Ray cluster at {address} {what}; {SET_TOKEN}") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the Ray cluster at {address} rejected the job: {_last_line(str(error))}") from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip(" \"'.}")]
    return lines[-1][:300] if lines else "no reason given"


# -- following the log ------------------------------------------------------------------------------------------------


def watch(client: JobSubmissionClient, job: Job, console: Console) -> None:
    """Show the job's log until it ends, then exit with the driver's outcome."""
    log = Log(console)
    try:
        with log:
            asyncio.run(_follow(client, job, log))
        _end_alike(_outcome(client, job), job, log)
    except KeyboardInterrupt:
        raise InterruptedStudyError("no longer following the log; the job goes on. To follow it again: "
                                    f"{job.watch}") from None


async def _follow(client: JobSubmissionClient, job: Job, log: Log) -> None:
    """Show each part of the log exactly once, reconnecting when necessary. Raises StudyFailedError."""
    lost_since = None
    while True:
        before, seen = log.length, 0
        try:
            async for chunk in client.tail_job_logs(job.id):
                log.write(chunk[max(0, log.length - seen):])
                seen += len(chunk)
            return
        except Exception:
            if log.length > before:
                lost_since = None
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_SECONDS:
                raise StudyFailedError(f"{job.address} no longer answers; the job may go on. To follow it again: "
                                       f"{job.watch}") from None
            await asyncio.sleep(1)


def _outcome(client: JobSubmissionClient, job: Job) -> Any:
    """Return Ray's information on the job once it has ended, which may be shortly after its log ends."""
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        with contextlib.suppress(Exception):
            info = client.get_job_info(job.id)
            if info.status in ENDED:
                return info
        if time.monotonic() > deadline:
            raise StudyFailedError(f"cannot read from {job.address} how the job ended; see {job.watch}")
        time.sleep(0.5)


def _end_alike(info: Any, job: Job, log: Log) -> None:
    """Return if the job has succeeded; otherwise raise or exit as its driver did."""
    if info.status == "SUCCEEDED":
        return
    if info.status == "STOPPED":
        raise InterruptedStudyError(f"the job was stopped; finished work is kept in {job.location}. Submit the study "
                                    "again to continue")
    code = info.driver_exit_code
    if not code:
        raise StudyFailedError(f"Ray could not run the job: {_last_line(info.message or '')}")
    if code < 0:
        click.echo(f"kdstudy: the driver was killed by signal {-code}; finished work is kept in {job.location}. "
                   "Submit the study again to continue", err=True)
    if missing := re.search(r"No module named '([\w.]+)'|python: (?:command )?not found", log.last):
        click.echo(f"kdstudy: the cluster's head has no {missing[1] or 'python on its PATH'}; use an image with "
                   "kdstudy's dependencies, or use --pip", err=True)
    sys.exit(code if code > 0 else 128 - code)


class Log:
    """Shows a job's log. On a terminal, each progress line replaces the one before."""

    def __init__(self, console: Console):
        self._console, self._rest, self._live = console, "", None
        self.length = 0  # characters written so far
        self.last = ""  # last line that was not progress

    def __enter__(self) -> Log:
        if self._console.is_terminal:
            self._live = Live(Text(), console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._print(self._rest)
        if self._live:
            self._live.stop()

    def write(self, text: str) -> None:
        """Add the next piece of the log, which may start and end in the middle of a line."""
        self.length += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        line = line.rstrip()
        moving = bool(PROGRESS.match(line))
        self.last = self.last if moving or not line else line
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis") if moving else Text(), refresh=True)
        if not (self._live and moving):
            self._console.print(line, soft_wrap=True, markup=False)

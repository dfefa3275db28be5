"""A study as a Ray job: shipped to a running cluster through its dashboard, and watched from here."""

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
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import InterruptedStudyError, StudyFailedError, UserError
from kdstudy.launch import common as launch
from kdstudy.tune.cluster import SET_TOKEN

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = re.compile(r"https?://[^\s/:]+(:\d+)?(/\S*)?")
ANSWER_SECONDS = 10.0
READY_SECONDS = 60.0  # for a head that answers to take jobs
STOP_SECONDS = 60  # for the driver to end its trials in order; Ray by itself gives it 3
LOST_SECONDS = 60.0  # without the dashboard, while a job is watched
PROGRESS = re.compile(r"[\d+]+/\d+ .+ … ")  # a line of study.display that the next one takes the place of
TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk",
             "ray._private.runtime_env.packaging")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted job: its submission id, the dashboard that has it, and where its study lives."""

    id: str
    address: str
    place: str

    @property
    def watch(self) -> str:
        return f"ray job logs --follow {self.id} --address {self.address}"

    @property
    def stop(self) -> str:
        return f"ray job stop {self.id} --address {self.address}"

    @property
    def fetch(self) -> str:
        return f"kdstudy fetch {shlex.quote(self.place)} FOLDER"


def submit(config: StudyConfig, place: str, console: Console, *, address: str | None, until: str | None, pip: bool,
           environment: dict[str, str], detach: bool) -> None:
    """Run a study as a job of the cluster whose dashboard is at `address`, and watch it unless `detach`.

    place: the absolute path or URI, on the cluster, where the study lives. Raises UserError where the job cannot be
    submitted, StudyFailedError where Ray could not run it, InterruptedStudyError where it was stopped or is no longer
    watched. Ends with the driver's own exit code where that has failed.
    """
    with tempfile.TemporaryDirectory(prefix="kdstudy-") as folder:
        launch.write_working_dir(config, Path(folder))
        runtime = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment}
        if pip:
            runtime["pip"] = launch.requirements(place)
        client = connect(address)
        job = Job(launch.job_name(config), client.get_address(), place)
        words = shlex.join(launch.command(STUDY_FILE, place, until))
        with _refusals(job.address):
            _hand_over(client, entrypoint=f"exec {words}", submission_id=job.id, runtime_env=runtime,
                       metadata={"study": config.name, "place": place})
    _announce(job, console)
    if not detach:
        watch(client, job, console)


def _hand_over(client: JobSubmissionClient, **job: Any) -> None:
    """Submit a job, also to a head that is still starting."""
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
                 f"stop   {job.stop}  (submit it again to go on)", f"fetch  {job.fetch}"):
        console.print(line, soft_wrap=True, markup=False)


# -- the dashboard ----------------------------------------------------------------------------------------------------


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the dashboard at `address`, or in RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Raises UserError."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError("--address is needed: the cluster's dashboard, http://HOST:8265")
    if not ADDRESS.fullmatch(address):
        raise UserError(f"the address {address!r} is not http://HOST:PORT, the dashboard's, as `ray start --head` "
                        "prints it (the port is 8265 unless chosen)")
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError("Ray Jobs need packages that are not installed here: pip install 'kdstudy[cluster]'")
    _check_answer(address)
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _refusals(address):
        return JobSubmissionClient(address)


def _check_answer(address: str) -> None:
    """See whether a dashboard answers soon; Ray's own client would wait for ever. Raises UserError."""
    import requests

    try:
        said = requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)
    except requests.RequestException:
        raise UserError(f"no Ray dashboard answers at {address}; check --address (http://HOST:8265, as `ray start "
                        "--head` prints it), that its head is up, and that ray[default] is installed there") from None
    if said.status_code not in (200, 401, 403) or (said.ok and "ray_version" not in said.text):
        raise UserError(f"what answers at {address} is no Ray dashboard; check --address (http://HOST:8265, as `ray "
                        "start --head` prints it)")


@contextlib.contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        what = "asks for a token" if "Authentication required" in str(error) else "refuses the token"
        raise UserError(f"the Ray cluster at {address} {what}; {SET_TOKEN}") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the Ray cluster at {address} does not take the job: {_last_line(str(error))}") from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip(" \"'.}")]
    return lines[-1][:300] if lines else "no reason given"


# -- watching ---------------------------------------------------------------------------------------------------------


def watch(client: JobSubmissionClient, job: Job, console: Console) -> None:
    """Show the job's log until it ends, then end as its driver did."""
    log = Log(console)
    try:
        with log:
            asyncio.run(_follow(client, job, log))
        _end_alike(_outcome(client, job), job, log)
    except KeyboardInterrupt:
        raise InterruptedStudyError(f"no longer watched; the job goes on. To watch it again: {job.watch}") from None


async def _follow(client: JobSubmissionClient, job: Job, log: Log) -> None:
    """Hand on the log, all of it once, however often the connection is lost. Raises StudyFailedError."""
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
                raise StudyFailedError(f"{job.address} answers no longer; the job may go on. To watch it again: "
                                       f"{job.watch}") from None
            await asyncio.sleep(1)


def _outcome(client: JobSubmissionClient, job: Job) -> Any:
    """What Ray says of the job once it has ended, which may be a moment after its log has."""
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        with contextlib.suppress(Exception):
            info = client.get_job_info(job.id)
            if info.status in ENDED:
                return info
        if time.monotonic() > deadline:
            raise StudyFailedError(f"how the job ended cannot be read from {job.address}; see {job.watch}")
        time.sleep(0.5)


def _end_alike(info: Any, job: Job, log: Log) -> None:
    """Return where the job has succeeded, else end the command as its driver ended."""
    if info.status == "SUCCEEDED":
        return
    if info.status == "STOPPED":
        raise InterruptedStudyError(f"the job was stopped; what is finished is kept in {job.place}. Submit the study "
                                    "again to go on")
    code = info.driver_exit_code
    if not code:
        raise StudyFailedError(f"Ray could not run the job: {_last_line(info.message or '')}")
    if code < 0:
        click.echo(f"kdstudy: the driver was killed by signal {-code}; what is finished is kept in {job.place}. Submit "
                   "the study again to go on", err=True)
    if missing := re.search(r"No module named '([\w.]+)'|python: (?:command )?not found", log.last):
        click.echo(f"kdstudy: the cluster's head has no {missing[1] or 'python on its PATH'}; use an image with "
                   "kdstudy's dependencies, or give --pip", err=True)
    sys.exit(code if code > 0 else 128 - code)


class Log:
    """Shows the log of a job: on a terminal a line of progress takes the place of the one before it."""

    def __init__(self, console: Console):
        self._console, self._rest, self._live = console, "", None
        self.length = 0  # characters written so far
        self.last = ""  # line, that was none of progress

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
        """Take the next piece of the log, which may begin and end within a line."""
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

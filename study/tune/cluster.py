"""Start or connect to Ray, and compute what share of its CPUs and GPUs each trial gets."""

import contextlib
import logging
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstudy.config.sections import ResourceSettings
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.trainables import functions
from kdstudy.trainables.messages import one_line
from kdstudy.tune.own_ray import without_epitaph, without_unused_processes

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # kdstudy's record replaces Ray's CSV, JSON and TensorBoard files and its experiment snapshots.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the searcher limits how many trials exist at a time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


LOOPBACK = "127.0.0.1"
RAY_BYTES = 64 * 2**20
# Address space, measured with CUDA torch: 8.5 GiB with Ray's object store, which takes a share of the memory.
LIBRARIES_BYTES, OBJECT_STORE_SHARE, LARGEST_OBJECT_STORE = 8 * 2**30, 0.3, 200e9
STARTS_LATE = "timed out during startup"  # on a busy machine; a second start finds everything in memory
CONNECT_SECONDS = 30.0  # Ray's own default is a quarter of an hour
ADDRESS = re.compile(r"auto|[^\s/@]+:\d+")
TRY_TO_CONNECT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"
SET_TOKEN = ("set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that it was started "
             "with, unless that is the one in ~/.ray/auth_token")
NO_ANSWER = ("no Ray cluster answers at {}; check --address or RAY_ADDRESS (HOST:PORT, as `ray start --head` prints "
             "it), and that its head is up")


@dataclass(frozen=True)
class Node:
    """A node of the cluster. id: Ray's node id."""

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs per trial, and how many trials run concurrently."""

    cpus: int
    gpus: float
    concurrent: int

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.concurrent} at a time, each {self.cpus} CPU{gpus}"


def share(resources: ResourceSettings, nodes: list[tuple[float, float]]) -> Share:
    """Divide the nodes' (CPUs, GPUs) among trials. Raises UserError if no node can fit a trial."""
    most_cpus, most_gpus = (max((node[kind] for node in nodes), default=0) for kind in (0, 1))
    per_trial = resources.gpus_per_trial if resources.gpus_per_trial is not None else float(most_gpus >= 1)
    if most_cpus < 1:
        raise UserError("the cluster has no node with CPUs; wait until its nodes have joined (see `ray status`), then "
                        "run the same command again")
    if resources.cpus_per_trial > most_cpus:
        raise UserError(f"resources.cpus_per_trial = {resources.cpus_per_trial} is more than the {most_cpus:g} CPUs "
                        "that a machine has; make it smaller")
    if per_trial > most_gpus:
        raise UserError(f"resources.gpus_per_trial = {per_trial:g} is more than the {most_gpus:g} GPUs that a machine "
                        "has; make it smaller, or 0 to train on CPUs")
    if per_trial > 1 and per_trial % 1:
        raise UserError(f"resources.gpus_per_trial = {per_trial:g} must be a fraction below 1 or a whole number")
    fits = sum(trials_on(node, resources.cpus_per_trial, per_trial) for node in nodes)
    if not fits:
        there = ", ".join(f"{cpus:g} CPU + {gpus:g} GPU" for cpus, gpus in sorted(set(nodes))[:4])
        raise UserError(f"no machine has both resources.cpus_per_trial = {resources.cpus_per_trial} and "
                        f"resources.gpus_per_trial = {per_trial:g}: there are {there}; make one of the two smaller")
    if resources.teacher_workers > fits:
        raise UserError(f"resources.teacher_workers = {resources.teacher_workers} is more than the {fits} that fit, "
                        f"each with {resources.cpus_per_trial} CPU and {per_trial:g} GPU; make it smaller")
    return Share(resources.cpus_per_trial, per_trial, min(fits, resources.concurrent or fits))


def trials_on(node: tuple[float, float], cpus: int, gpus: float) -> int:
    """How many trials with `cpus` CPUs and `gpus` GPUs fit on a node with (CPUs, GPUs) at a time."""
    return min(math.floor(node[0] / cpus), _on_gpus(node[1], gpus))


def _on_gpus(gpus: float, per_trial: float) -> float:
    """How many trials fit on a node's GPUs. A fractional share never spans two GPUs."""
    if not per_trial:
        return math.inf
    if per_trial < 1:
        return math.floor(gpus) * math.floor(1 / per_trial + 1e-9)
    return math.floor(gpus / per_trial)


def local_share(resources: ResourceSettings) -> Share:
    """The share of each trial on this machine, computed without starting Ray. Raises UserError if no trial fits."""
    return share(resources, [(usable_cpus(), local_gpus())])


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def local_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cluster_address(address: str | None) -> str | None:
    """The cluster to connect to: `address`, else RAY_ADDRESS. None means to start Ray on this machine."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[bool]:
    """Connect to the cluster at `address` or RAY_ADDRESS, else start Ray on this machine; disconnect at the end.

    If the caller has already started Ray, that instance is used and left running. Yields whether Ray was started here
    for this study. Raises UserError if the cluster cannot be reached.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield False
        return
    for name in ("ray", "ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = cluster_address(address)
    if address:
        check_connection(address)
    with contextlib.nullcontext() if address else without_epitaph():
        _start(address)
        try:
            yield not address
        finally:
            ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    if not address:
        _check_memory_limit()
        _check_ray_room()
    options = {} if address else {"num_cpus": usable_cpus(), "include_dashboard": False, "_node_ip_address": LOOPBACK}
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.ExitStack() as started:
            if not address:
                started.enter_context(_on_loopback())
                started.enter_context(without_unused_processes())
                started.enter_context(_functions_found())
            if not (address and functions.may_be_called()):  # on a cluster, Ray itself tells workers of this folder
                options["job_config"] = _job_apart_from_here()
            options |= {"address": address or "local", "log_to_driver": False, "logging_level": "CRITICAL"}
            try:
                ray.init(**options)
            except Exception as error:
                if STARTS_LATE not in str(error):
                    raise
                ray.init(**options)
    except SystemExit:  # Ray turns SIGTERM into this
        raise KeyboardInterrupt from None
    except Exception as error:
        if address:
            raise UserError(why_not_connected(address, str(error))) from None
        raise UserError(f"Ray cannot be started on this machine: {one_line(error)}; check that {_ray_folder()} has "
                        "room and that memory is free, then run the same command again") from None
    finally:
        _make_token_private()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, earlier)  # Ray's own handler would exit without a message


def _job_apart_from_here() -> Any:
    """Return a Ray job configuration that keeps the current folder off the workers' import path.

    Otherwise Ray puts that folder first, and a file named timm.py in an untrusted folder would run in place of timm."""
    from ray.job_config import JobConfig

    class Apart(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Apart()


@contextlib.contextmanager
def _functions_found() -> Iterator[None]:
    """Let workers started in this context import the user's functions from the same folders as this process."""
    earlier = os.environ.get(functions.FOLDER)
    os.environ[functions.FOLDER] = earlier or os.getcwd()
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[functions.FOLDER]


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a local Ray listen on the loopback address only. By default it replaces that address and listens on all
    interfaces, which would expose the study to the network."""
    from ray._private import services

    name = "resolve_ip_for_localhost"
    own = getattr(services, name, None)
    if own is None:  # this Ray version works differently, or respects the address
        yield
        return
    setattr(services, name, lambda host: host)
    try:
        yield
    finally:
        setattr(services, name, own)


def _make_token_private() -> None:
    """Restrict access to Ray's authentication token: every user who can read it may run code on the cluster."""
    with contextlib.suppress(OSError, RuntimeError):
        path = Path.home() / ".ray" / "auth_token"
        if path.is_file() and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _check_memory_limit() -> None:
    """Check that this process may map as much address space as Ray and torch reserve. Raises UserError."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = LIBRARIES_BYTES + min(OBJECT_STORE_SHARE * memory, LARGEST_OBJECT_STORE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(f"the memory that a process may address is limited to {limit / 2**30:.1f} GiB, but Ray and "
                        f"torch reserve about {needed / 2**30:.0f} GiB; raise the limit with `ulimit -v unlimited`")


def _ray_folder() -> str:
    """The folder for Ray's sockets and logs. On Linux, Ray also respects TMPDIR."""
    chosen = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    return os.environ.get("RAY_TMPDIR") or chosen or "/tmp"


def _check_ray_room() -> None:
    folder = _ray_folder()
    with contextlib.suppress(OSError):  # Ray creates it
        if (free := shutil.disk_usage(folder).free) < RAY_BYTES:
            raise UserError(f"{folder} has {free / 2**20:.0f} MiB free, but Ray needs {RAY_BYTES >> 20} MiB for "
                            "its logs and sockets; make room there, or set RAY_TMPDIR to another folder")


def check_connection(address: str) -> None:
    """Try the connection in a subprocess, since Ray waits long and prints the reason of a failure without raising it.

    Raises UserError if the connection fails.
    """
    if not ADDRESS.fullmatch(address):
        shown = address.rpartition("@")[2]  # the part before @ may be a secret
        raise UserError(f"the address {shown!r} is not HOST:PORT, as `ray start --head` prints it (port 6379 by "
                        "default); the addresses of the dashboard (http://) and of Ray Client (ray://) do not work")
    hasty = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_gcs_server_request_timeout_seconds": "10",
             "RAY_BACKEND_LOG_LEVEL": "warning"}
    try:
        # -P keeps the current folder, which may contain a file named ray.py, off the import path.
        tried = subprocess.run([sys.executable, "-P", "-c", TRY_TO_CONNECT, address], env=os.environ | hasty, text=True,
                               stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(NO_ANSWER.format(address)) from None
    if tried.returncode:
        raise UserError(why_not_connected(address, tried.stderr))


def why_not_connected(address: str, printed: str) -> str:
    """Explain, in one line with the remedy, what Ray printed when it could not connect."""
    if "InvalidAuthToken" in printed and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        names = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        return f"the Ray cluster at {address} refuses the token in {(names or ['~/.ray/auth_token'])[0]}; {SET_TOKEN}"
    if "InvalidAuthToken" in printed or "AuthenticationError" in printed:
        return f"the Ray cluster at {address} requires a token; {SET_TOKEN}"
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", printed)
    if "Version mismatch" in printed and len(versions) == 2:
        (ray, python), (our_ray, our_python) = versions
        return (f"the Ray cluster at {address} runs Ray {ray} on Python {python}, this machine Ray {our_ray} on Python "
                f"{our_python}; install the same versions on both")
    if "No node info found" in printed:
        return (f"no node of the Ray cluster at {address} runs on this machine; run the command on one of its nodes, "
                f"or make this machine one with `ray start --address={address}`")
    last = ([line.strip() for line in printed.splitlines() if line.strip()] or ["no reason given"])[-1][:300]
    if "Failed to connect to Ray cluster" in last:
        return NO_ANSWER.format(address)
    return f"cannot use the Ray cluster at {address}: {last}; check --address or RAY_ADDRESS"


def cluster_nodes() -> list[Node]:
    """Return the live nodes of the connected cluster."""
    import ray

    return [Node(node["NodeID"], node["NodeName"] or node["NodeManagerAddress"], node["Resources"].get("CPU", 0),
                 node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def remote_work(stage: str) -> Iterator[None]:
    """Turn Ray's errors about permanently failed work into a StudyFailedError of one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise StudyFailedError(f"{stage}: {reason}; run the same command again to retry") from error


def cluster_share(resources: ResourceSettings) -> Share:
    """The share of each trial on the connected cluster. Raises UserError if no node can fit a trial."""
    return share(resources, [(node.cpus, node.gpus) for node in cluster_nodes()])


def waiting_note(given: Share) -> str | None:
    """A message if no resources for a trial are free now, since Ray waits silently; else None."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    if free.get("CPU", 0) >= given.cpus and free.get("GPU", 0) >= given.gpus:
        return None
    shown = " and ".join(f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU")
                         if total.get(kind))
    return f"other jobs use the cluster ({shown} are free); trials start once those jobs release it"


def describe_machine() -> str:
    """Describe the machine or cluster that the study runs on, so that its times can be interpreted."""
    import ray

    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    parts = [f"{resources.get('CPU', 0):g} CPU cores ({platform.machine()})"]
    if count := resources.get("GPU", 0):
        parts.append(f"{count:g} GPUs" + (f" ({', '.join(sorted(gpus))})" if gpus else ""))
    return " and ".join(parts) + (f" on {nodes} nodes" if nodes > 1 else "")

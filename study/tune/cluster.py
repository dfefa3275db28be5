"""The connection to Ray: a quiet local cluster unless an address is given, and what a trial gets of it."""

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

from kdstudy.config.settings import ResourceSettings
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.trainables import functions
from kdstudy.trainables.messages import one_line

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Our record replaces Ray's CSV, JSON and TensorBoard files and its own snapshots of the experiment.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # our searcher says how many trials there are at a time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


LOOPBACK = "127.0.0.1"
RAY_BYTES = 64 * 2**20
# What is mapped, measured with torch for CUDA: 8.5 GiB with Ray's object store, which is a share of the memory.
LIBRARIES_BYTES, OBJECT_STORE_SHARE, LARGEST_OBJECT_STORE = 8 * 2**30, 0.3, 200e9
CONNECT_SECONDS = 30.0  # Ray by itself waits for a quarter of an hour
ADDRESS = re.compile(r"auto|[^\s/@]+:\d+")
TRY_TO_CONNECT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"
SET_TOKEN = ("set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that it was started "
             "with, unless that is the one in ~/.ray/auth_token")
NO_ANSWER = ("no Ray cluster answers at {}; check --address or RAY_ADDRESS (HOST:PORT, as `ray start --head` prints "
             "it), and that its head is up")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, by Ray's name for it."""

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Share:
    """What each trial gets and how many run at a time."""

    cpus: int
    gpus: float
    concurrent: int

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.concurrent} at a time, each {self.cpus} CPU{gpus}"


def share(resources: ResourceSettings, nodes: list[tuple[float, float]]) -> Share:
    """Divide the nodes' (CPUs, GPUs) among trials. Raises UserError where not even one trial fits on a node."""
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
        raise UserError(f"resources.cpus_per_trial = {resources.cpus_per_trial} and resources.gpus_per_trial = "
                        f"{per_trial:g} are on no machine together: there are {there}; make one of the two smaller")
    if resources.teacher_workers > fits:
        raise UserError(f"resources.teacher_workers = {resources.teacher_workers} is more than the {fits} that there "
                        f"is room for, each with {resources.cpus_per_trial} CPU and {per_trial:g} GPU; make it smaller")
    return Share(resources.cpus_per_trial, per_trial, min(fits, resources.concurrent or fits))


def trials_on(node: tuple[float, float], cpus: int, gpus: float) -> int:
    """How many trials of so many CPUs and GPUs a node with its own (CPUs, GPUs) takes at a time."""
    return min(math.floor(node[0] / cpus), _on_gpus(node[1], gpus))


def _on_gpus(gpus: float, per_trial: float) -> float:
    """How many trials a node's GPUs take: a fraction never spans two GPUs."""
    if not per_trial:
        return math.inf
    if per_trial < 1:
        return math.floor(gpus) * math.floor(1 / per_trial + 1e-9)
    return math.floor(gpus / per_trial)


def local_share(resources: ResourceSettings) -> Share:
    """The share on this machine, without starting Ray."""
    return share(resources, [(usable_cpus(), local_gpus())])


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def local_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: at `address` or in RAY_ADDRESS; None is this machine, on which Ray is to be started."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[bool]:
    """Ray for the time of a study: the cluster at `address` or in RAY_ADDRESS, else one on this machine.

    A Ray that the caller has already started is used as it is and left running. Gives whether Ray was started here,
    for this study alone. Raises UserError where no cluster can be used at the address.
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
                started.enter_context(_functions_found())
            if not (address and functions.may_be_called()):  # there it is Ray that tells workers of this folder
                options["job_config"] = _job_apart_from_here()
            ray.init(address=address or "local", log_to_driver=False, logging_level="CRITICAL", **options)
    except SystemExit:  # what Ray makes of a SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:
        if address:
            raise UserError(why_not_connected(address, str(error))) from None
        raise UserError(f"Ray cannot be started on this machine: {one_line(error)}; see that {_ray_folder()} has room "
                        "and that memory is free, then run the same command again") from None
    finally:
        _make_token_private()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, earlier)  # Ray has put its own there, which would end us without a word


def _job_apart_from_here() -> Any:
    """Ray puts the folder that one is in before all others from which its workers import: a file called timm.py in a
    folder from somebody else would be run in place of timm. It does not where the job brings its own folder along."""
    from ray.job_config import JobConfig

    class Apart(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Apart()


@contextlib.contextmanager
def _functions_found() -> Iterator[None]:
    """Workers that are started meanwhile look for functions of the user's own where this process does."""
    earlier = os.environ.get(functions.FOLDER)
    os.environ[functions.FOLDER] = earlier or os.getcwd()
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[functions.FOLDER]


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray takes the loopback address for a slip and listens on all interfaces instead; but what it starts for one
    machine's study is nobody else's business."""
    from ray._private import services

    name = "resolve_ip_for_localhost"
    own = getattr(services, name, None)
    if own is None:  # a version that does it in another way, or takes the address as it is
        yield
        return
    setattr(services, name, lambda host: host)
    try:
        yield
    finally:
        setattr(services, name, own)


def _make_token_private() -> None:
    """Whoever reads the token that Ray leaves behind may run code on the cluster that it was made for."""
    with contextlib.suppress(OSError, RuntimeError):
        path = Path.home() / ".ray" / "auth_token"
        if path.is_file() and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _check_memory_limit() -> None:
    """See whether this process may address what Ray and torch map, most of which they never touch. Raises UserError."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = LIBRARIES_BYTES + min(OBJECT_STORE_SHARE * memory, LARGEST_OBJECT_STORE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(f"the memory that a process may address is limited to {limit / 2**30:.1f} GiB, but Ray and "
                        f"torch reserve about {needed / 2**30:.0f} GiB; raise the limit, with `ulimit -v unlimited`")


def _ray_folder() -> str:
    """Where Ray keeps its sockets and logs: on Linux it asks TMPDIR too."""
    chosen = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    return os.environ.get("RAY_TMPDIR") or chosen or "/tmp"


def _check_ray_room() -> None:
    folder = _ray_folder()
    with contextlib.suppress(OSError):  # Ray makes it
        if (free := shutil.disk_usage(folder).free) < RAY_BYTES:
            raise UserError(f"{folder} has {free / 2**20:.0f} MiB free, but Ray needs {RAY_BYTES >> 20} MiB for "
                            "its logs and sockets; make room there, or set RAY_TMPDIR to another folder")


def check_connection(address: str) -> None:
    """Connect once in a process of its own: Ray waits long, and prints the reason instead of raising it.

    Raises UserError where that fails.
    """
    if not ADDRESS.fullmatch(address):
        shown = address.rpartition("@")[2]  # what is before it may be a secret
        raise UserError(f"the address {shown!r} is not HOST:PORT, as `ray start --head` prints it (the port is 6379 "
                        "unless chosen); neither the dashboard's (http://) nor Ray Client's (ray://) will do")
    hasty = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_gcs_server_request_timeout_seconds": "10",
             "RAY_BACKEND_LOG_LEVEL": "warning"}
    try:
        # -P: without the folder one is in, where anybody's ray.py may lie.
        tried = subprocess.run([sys.executable, "-P", "-c", TRY_TO_CONNECT, address], env=os.environ | hasty, text=True,
                               stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(NO_ANSWER.format(address)) from None
    if tried.returncode:
        raise UserError(why_not_connected(address, tried.stderr))


def why_not_connected(address: str, printed: str) -> str:
    """One line, with the remedy, for what Ray prints where it cannot connect."""
    if "InvalidAuthToken" in printed and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        names = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        return f"the Ray cluster at {address} refuses the token in {(names or ['~/.ray/auth_token'])[0]}; {SET_TOKEN}"
    if "InvalidAuthToken" in printed or "AuthenticationError" in printed:
        return f"the Ray cluster at {address} asks for a token; {SET_TOKEN}"
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
    """The nodes of the connected cluster that are alive."""
    import ray

    return [Node(node["NodeID"], node["NodeName"] or node["NodeManagerAddress"], node["Resources"].get("CPU", 0),
                 node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def remote_work(stage: str) -> Iterator[None]:
    """Turn what Ray says of work that failed for good into a StudyFailedError of one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise StudyFailedError(f"{stage}: {reason}; run the same command again to try again") from error


def cluster_share(resources: ResourceSettings) -> Share:
    """The share on the connected cluster. Raises UserError where not even one trial fits on a node."""
    return share(resources, [(node.cpus, node.gpus) for node in cluster_nodes()])


def waiting_note(given: Share) -> str | None:
    """A line for the user where nothing is free for a trial now: Ray waits in silence; None where something is."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    if free.get("CPU", 0) >= given.cpus and free.get("GPU", 0) >= given.gpus:
        return None
    shown = " and ".join(f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU")
                         if total.get(kind))
    return f"other jobs hold the cluster ({shown} are free); trials begin when they let go"


def describe_machine() -> str:
    """What the study runs on, for a reader of its times."""
    import ray

    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    parts = [f"{resources.get('CPU', 0):g} CPU cores ({platform.machine()})"]
    if count := resources.get("GPU", 0):
        parts.append(f"{count:g} GPUs" + (f" ({', '.join(sorted(gpus))})" if gpus else ""))
    return " and ".join(parts) + (f" on {nodes} nodes" if nodes > 1 else "")

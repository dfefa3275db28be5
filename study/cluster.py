"""The connection to Ray: a quiet local cluster unless an address is given, and what a trial gets of it."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from study.config import ResourceSettings
from study.errors import UserError

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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


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
    most_cpus, most_gpus = max(cpus for cpus, _ in nodes), max(gpus for _, gpus in nodes)
    per_trial = resources.gpus_per_trial if resources.gpus_per_trial is not None else float(most_gpus >= 1)
    if resources.cpus_per_trial > most_cpus:
        raise UserError(f"resources.cpus_per_trial = {resources.cpus_per_trial} is more than the {most_cpus:g} CPUs "
                        "that a machine has; make it smaller")
    if per_trial > most_gpus:
        raise UserError(f"resources.gpus_per_trial = {per_trial:g} is more than the {most_gpus:g} GPUs that a machine "
                        "has; make it smaller, or 0 to train on CPUs")
    if per_trial > 1 and per_trial % 1:
        raise UserError(f"resources.gpus_per_trial = {per_trial:g} must be a fraction below 1 or a whole number")
    fits = sum(min(math.floor(cpus / resources.cpus_per_trial), _on_gpus(gpus, per_trial)) for cpus, gpus in nodes)
    return Share(resources.cpus_per_trial, per_trial, max(1, min(fits, resources.concurrent or fits)))


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


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Ray for the time of a study: the cluster at `address` or in RAY_ADDRESS, else one on this machine.

    A Ray that the caller has already started is used as it is and left running.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = address or os.environ.get("RAY_ADDRESS") or None
    local = {} if address else {"num_cpus": usable_cpus(), "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="CRITICAL", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise UserError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def cluster_share(resources: ResourceSettings) -> Share:
    """The share on the connected cluster."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return share(resources, [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes])

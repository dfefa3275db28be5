"""Run a study on Kubernetes: a KubeRay RayJob starts a Ray cluster, runs the study, and retries after a preemption.

The container image must include kdstudy; a ConfigMap holds the settings."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console

from kdstudy.config.load import STUDY_FILE
from kdstudy.config.series import Series
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.launch import common as launch

MOUNT = "/etc/kdstudy"
LONGEST_NAME = 47  # of a RayJob, since other objects' names contain it
ATTEMPTS_AFTER_FIRST = 3
STOP_SECONDS = 60
HEAD_CPUS, WORKER_CPUS = 2, 8
QUANTITY = re.compile(r"\d+(\.\d+)?([kMGTPE]i?)?")


@dataclass(frozen=True)
class Pods:
    """The pods to request from Kubernetes.

    memory: per pod, as a Kubernetes quantity. environment: variables of all containers. secrets: Kubernetes secrets
    whose keys become variables of all containers."""

    image: str
    workers: int
    cpus_per_node: int
    gpus_per_node: int | None
    memory: str
    namespace: str | None
    environment: dict[str, str]
    secrets: tuple[str, ...]

    def check(self) -> None:
        """Raises UserError if the memory or the image is invalid."""
        if not QUANTITY.fullmatch(self.memory):
            raise UserError(f"--memory {self.memory} is not a Kubernetes size such as 32Gi")
        if not self.image or re.search(r"\s", self.image):
            raise UserError("--image is needed: an image with kdstudy and ray[default], see the README")

    def template(self, name: str, cpus: int, gpus: int | None, more: dict[str, Any]) -> dict[str, Any]:
        """Return a pod template with one container."""
        amounts = {"cpu": cpus, "memory": self.memory} | ({"nvidia.com/gpu": gpus} if gpus else {})
        container: dict[str, Any] = {"name": name, "image": self.image,
                                     "resources": {"requests": dict(amounts), "limits": dict(amounts)}}
        if self.environment:
            container["env"] = [{"name": name, "value": value} for name, value in self.environment.items()]
        if self.secrets:
            container["envFrom"] = [{"secretRef": {"name": secret}} for secret in self.secrets]
        volumes = more.pop("volumes", None)
        return {"spec": {"containers": [container | more]} | ({"volumes": volumes} if volumes else {})}


def manifests(config: StudyConfig | Series, location: str, pods: Pods, until: str | None = None
              ) -> list[dict[str, Any]]:
    """Return the ConfigMap with the settings, and the RayJob.

    location: the study's URI, or absolute path shared by all pods. Raises UserError.
    """
    pods.check()
    metadata: dict[str, Any] = {"name": object_name(config)}
    if pods.namespace:
        metadata["namespace"] = pods.namespace
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {STUDY_FILE: config.to_toml()}}
    words = launch.command(f"{MOUNT}/{STUDY_FILE}", location, until)
    spec = {"entrypoint": shlex.join(words), "shutdownAfterJobFinishes": True, "backoffLimit": ATTEMPTS_AFTER_FIRST,
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}),
            "rayClusterSpec": _cluster(pods, metadata["name"])}
    return [settings, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": dict(metadata), "spec": spec}]


def object_name(config: StudyConfig | Series) -> str:
    """Return a unique job name that is valid in Kubernetes: short, of lower-case letters, digits and hyphens."""
    kind, *name, day, time = re.sub(r"[^a-z0-9]+", "-", launch.job_name(config).lower()).split("-")
    room = LONGEST_NAME - len(kind) - len(day) - len(time) - 3
    return "-".join([kind, "-".join(name)[:room].strip("-"), day, time])


def _cluster(pods: Pods, settings: str) -> dict[str, Any]:
    mounted = {"volumeMounts": [{"name": "settings", "mountPath": MOUNT, "readOnly": True}],
               "volumes": [{"name": "settings", "configMap": {"name": settings}}]}
    return {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"},  # reserved for the driver
                          "template": pods.template("ray-head", HEAD_CPUS, None, mounted)},
        "workerGroupSpecs": [{
            "groupName": "workers", "replicas": pods.workers, "minReplicas": pods.workers, "maxReplicas": pods.workers,
            "rayStartParams": {},
            "template": pods.template("ray-worker", pods.cpus_per_node, pods.gpus_per_node, {})}],
    }


class _Readable(yaml.SafeDumper):
    """Writes multi-line strings as blocks, and no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Readable.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def to_yaml(objects: list[dict[str, Any]]) -> str:
    return yaml.dump_all(objects, Dumper=_Readable, sort_keys=False, width=120, allow_unicode=True)


def submit(objects: list[dict[str, Any]], location: str, console: Console) -> None:
    """Create the objects with kubectl and print the commands to watch, stop and fetch. Raises UserError if that fails.
    """
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not on this machine's PATH; install it, or use --print and create the objects "
                        "on a machine that has it")
    done = subprocess.run(["kubectl", "create", "-f", "-"], input=to_yaml(objects), text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"kubectl could not create the job: {' '.join(done.stderr.split())[:300]}; check that it "
                        "reaches the cluster, and that KubeRay is installed there")
    metadata = objects[-1]["metadata"]
    name, where = metadata["name"], f" -n {metadata['namespace']}" if "namespace" in metadata else ""
    for line in (f"job    {name}", f"watch  kubectl logs -f{where} -l job-name={name}",
                 f"stop   kubectl delete{where} rayjob/{name} configmap/{name}  (submit it again to continue)",
                 f"fetch  kdstudy fetch {shlex.quote(location)} FOLDER"):
        console.print(line, soft_wrap=True, markup=False)

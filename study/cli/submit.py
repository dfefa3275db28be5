"""`kdstudy submit`: a study sent to a cluster. A launcher is one file in `launch/` and one line in `LAUNCHERS`."""

from typing import Any

import click

from kdstudy.cli.group import cli
from kdstudy.cli.options import study_options, trust_option, variables
from kdstudy.cli.resolve import allow, locate
from kdstudy.config.load import STUDY_FILE
from kdstudy.config.permission import MODELS
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.launch import common, kuberay, ray_job, slurm
from kdstudy.stages.order import NAMES
from kdstudy.watch.console import make_console

TARGETS = ("ray", "slurm", "kuberay")
# Options of `submit` that mean something to some of its targets only.
MEANT_FOR = {
    "address": ("ray",), "pip": ("ray",), "detach": ("ray",), "environment": ("ray", "kuberay"),
    "nodes": ("slurm",), "time": ("slurm",), "partition": ("slurm",), "account": ("slurm",), "sbatch": ("slurm",),
    "setup": ("slurm",), "image": ("kuberay",), "workers": ("kuberay",), "memory": ("kuberay",),
    "namespace": ("kuberay",), "env_from": ("kuberay",), "gpus_per_node": ("slurm", "kuberay"),
    "cpus_per_node": ("slurm", "kuberay"), "show": ("slurm", "kuberay"),
}


@cli.command()
@study_options
@click.option("--to", "target", type=click.Choice(TARGETS), default=TARGETS[0], show_default=True,
              help="A running Ray cluster, or a SLURM or Kubernetes one on which Ray is started.")
@click.option("--until", type=click.Choice(NAMES), metavar="STAGE", help="Stop after a stage, as `run` does.")
@click.option("--address", metavar="URL",
              help="ray: the cluster's dashboard, http://HOST:8265.  [default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS]")
@click.option("--pip", is_flag=True, help="ray: install on the nodes what kdstudy needs, where their image lacks it.")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]",
              help="ray, kuberay: a variable for driver and workers, no secret; without a value, as it is here.")
@click.option("--detach", is_flag=True, help="ray: return at once instead of following the log.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="slurm: how many.")
@click.option("--time", default="24:00:00", show_default=True, help="slurm: the time limit.")
@click.option("--partition", help="slurm: where to.")
@click.option("--account", help="slurm: on whose account.")
@click.option("--sbatch", multiple=True, metavar="KEY[=VALUE]", help="slurm: any other option of sbatch.")
@click.option("--setup", multiple=True, metavar="LINE",
              help="slurm: a line of shell that brings kdstudy to the nodes.  [default: this virtual environment]")
@click.option("--image", metavar="NAME", help="kuberay: a container image with kdstudy and ray[default].")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="kuberay: pods besides the head.")
@click.option("--memory", default="32Gi", show_default=True, help="kuberay: of each pod.")
@click.option("--namespace", help="kuberay: of the job.")
@click.option("--env-from", multiple=True, metavar="SECRET", help="kuberay: a secret with variables for all pods.")
@click.option("--gpus-per-node", type=click.IntRange(1), metavar="N", help="slurm, kuberay: of each node or worker.")
@click.option("--cpus-per-node", type=click.IntRange(1), metavar="N",
              help="slurm, kuberay: of each node or worker.  [default: slurm all, kuberay 8]")
@click.option("--print", "show", is_flag=True, help="slurm, kuberay: print the script or the manifests instead.")
@trust_option
@click.pass_context
def submit(context: click.Context, study: str, overrides: tuple[str, ...], place: str | None, smoke: bool, target: str,
           until: str | None, trust: bool, **options: Any) -> None:
    """Run a study on a cluster.

    \b
    kdstudy submit STUDY --address http://HEAD:8265 --dir URI          as a job of a Ray cluster that is up
    kdstudy submit STUDY --to slurm --dir PLACE --nodes 2              as a SLURM job
    kdstudy submit STUDY --to kuberay --dir URI --image NAME           as a RayJob of Kubernetes

    --dir is needed: an absolute path that all nodes share, or a URI. Submit a study again to go on where it was cut
    off.
    """
    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    for name in sorted(name for name in given if target not in MEANT_FOR[name]):
        option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
        raise UserError(f"{option} means nothing to --to {target}; it belongs to --to {' or '.join(MEANT_FOR[name])}")
    config, storage = locate(study, overrides, place, smoke)
    allow(config, study, overrides, trust, (*MODELS, "watch"))
    place = place or (str(storage) if (storage.folder / STUDY_FILE).is_file() else "")
    common.check_place(place)
    common.check_paths(config)
    LAUNCHERS[target](config, place, until, options)


def _submit_to_ray(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    ray_job.submit(config, place, make_console(), address=options["address"], until=until, pip=options["pip"],
                      environment=variables(options["environment"]), detach=options["detach"])


def _submit_to_slurm(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    allocation = slurm.Allocation(*(options[name] for name in (
        "nodes", "gpus_per_node", "cpus_per_node", "time", "partition", "account", "sbatch")))
    content = slurm.script(config, place, allocation, until=until, setup=options["setup"])
    if options["show"]:
        click.echo(content, nl=False)
    else:
        slurm.submit(content, place, make_console())


def _submit_to_kuberay(config: StudyConfig, place: str, until: str | None, options: dict[str, Any]) -> None:
    pods = kuberay.Pods(options["image"] or "", options["workers"], options["cpus_per_node"] or kuberay.WORKER_CPUS,
                        options["gpus_per_node"], options["memory"], options["namespace"],
                        variables(options["environment"]), options["env_from"])
    objects = kuberay.manifests(config, place, pods, until)
    if options["show"]:
        click.echo(kuberay.to_yaml(objects), nl=False)
    else:
        kuberay.submit(objects, place, make_console())


LAUNCHERS = {"ray": _submit_to_ray, "slurm": _submit_to_slurm, "kuberay": _submit_to_kuberay}

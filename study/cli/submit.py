"""`kdstudy submit`: run a study on a cluster.

To add a launcher, add a module to `launch/` and an entry to `LAUNCHERS`."""

from typing import Any

import click

from kdstudy.cli.group import cli
from kdstudy.cli.options import study_options, trust_option, variables
from kdstudy.cli.resolve import allow, locate, locate_series
from kdstudy.config.load import STUDY_FILE
from kdstudy.config.permission import TRAINED
from kdstudy.config.series import Series, studies_of
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.stages.order import up_to
from kdstudy.watch.console import make_console

TARGETS = ("ray", "slurm", "kuberay")
# Options of `submit` that only some of its targets accept.
MEANT_FOR = {
    "address": ("ray",), "pip": ("ray",), "detach": ("ray",), "environment": ("ray", "kuberay"),
    "nodes": ("slurm",), "time": ("slurm",), "partition": ("slurm",), "account": ("slurm",), "sbatch": ("slurm",),
    "setup": ("slurm",), "requeues": ("slurm",), "image": ("kuberay",), "workers": ("kuberay",), "memory": ("kuberay",),
    "namespace": ("kuberay",), "env_from": ("kuberay",), "gpus_per_node": ("slurm", "kuberay"),
    "cpus_per_node": ("slurm", "kuberay"), "show": ("slurm", "kuberay"),
}


@cli.command()
@study_options
@click.option("--to", "target", type=click.Choice(TARGETS), default=TARGETS[0], show_default=True,
              help="Cluster type: a running Ray cluster, or a SLURM or Kubernetes cluster where the job starts Ray.")
@click.option("--until", metavar="STAGE", help="Stop after this stage; see `kdstudy run`.")
@click.option("--address", metavar="URL",
              help="ray: dashboard URL, http://HOST:8265.  [default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS]")
@click.option("--pip", is_flag=True, help="ray: install kdstudy's requirements on the nodes.")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]",
              help="ray, kuberay: environment variable for driver and workers, not for secrets. Without a value, "
                   "copied from this environment. Repeatable.")
@click.option("--detach", is_flag=True, help="ray: submit the job without following its log.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="slurm: number of nodes.")
@click.option("--time", default="24:00:00", show_default=True, help="slurm: time limit.")
@click.option("--partition", help="slurm: partition.")
@click.option("--account", help="slurm: account to charge.")
@click.option("--sbatch", multiple=True, metavar="KEY[=VALUE]", help="slurm: further sbatch option. Repeatable.")
@click.option("--requeues", type=click.IntRange(0), default=20, show_default=True, metavar="N",
              help="slurm: how many times the job may requeue itself at its time limit; 0 to submit it again yourself.")
@click.option("--setup", multiple=True, metavar="LINE",
              help="slurm: shell line that makes kdstudy available on each node. Repeatable.  [default: activate this "
                   "virtual environment]")
@click.option("--image", metavar="NAME", help="kuberay: container image with kdstudy and ray[default].")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True,
              help="kuberay: number of worker pods, besides the head.")
@click.option("--memory", default="32Gi", show_default=True, help="kuberay: memory of each pod.")
@click.option("--namespace", help="kuberay: namespace of the job.")
@click.option("--env-from", multiple=True, metavar="SECRET",
              help="kuberay: Kubernetes secret whose keys become environment variables of all pods. Repeatable.")
@click.option("--gpus-per-node", type=click.IntRange(1), metavar="N",
              help="slurm, kuberay: GPUs of each node or worker pod.")
@click.option("--cpus-per-node", type=click.IntRange(1), metavar="N",
              help="slurm, kuberay: CPUs of each node or worker pod.  [default: slurm all, kuberay 8]")
@click.option("--print", "show", is_flag=True,
              help="slurm, kuberay: print the script or manifests without submitting them.")
@trust_option
@click.pass_context
def submit(context: click.Context, study: str, overrides: tuple[str, ...], location: str | None, smoke: bool,
           target: str, until: str | None, trust: bool, **options: Any) -> None:
    """Run a study on a cluster.

    \b
    kdstudy submit STUDY --address http://HEAD:8265 --dir URI          as a job on a running Ray cluster
    kdstudy submit STUDY --to slurm --dir FOLDER --nodes 2             as a SLURM job
    kdstudy submit STUDY --to kuberay --dir URI --image NAME           as a KubeRay RayJob on Kubernetes

    --dir is required: the absolute path of a folder that all nodes share, or a URI. Submit the study again to resume
    it after an interruption.
    """
    from kdstudy.launch import common  # the launchers and the data sources take long to import

    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    for name in sorted(name for name in given if target not in MEANT_FOR[name]):
        option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
        raise UserError(f"{option} does not apply to --to {target}, only to --to {' or '.join(MEANT_FOR[name])}")
    if (found := locate_series(study, overrides, location, smoke)) is not None:
        config, storage = found.series, found.storage
    else:
        config, storage = locate(study, overrides, location, smoke)
    for one in studies_of(config):
        if until is not None:
            up_to(one, until)
        allow(one, study, overrides, trust, (*TRAINED, "watch"))
    location = location or (str(storage) if (storage.folder / STUDY_FILE).is_file() else "")
    common.check_location(location)
    common.check_paths(config)
    LAUNCHERS[target](config, location, until, options)


def _submit_to_ray(config: StudyConfig | Series, location: str, until: str | None, options: dict[str, Any]) -> None:
    from kdstudy.launch import ray_job

    ray_job.submit(config, location, make_console(), address=options["address"], until=until, pip=options["pip"],
                      environment=variables(options["environment"]), detach=options["detach"])


def _submit_to_slurm(config: StudyConfig | Series, location: str, until: str | None, options: dict[str, Any]) -> None:
    from kdstudy.launch import slurm

    allocation = slurm.Allocation(*(options[name] for name in (
        "nodes", "gpus_per_node", "cpus_per_node", "time", "partition", "account", "sbatch", "requeues")))
    content = slurm.script(config, location, allocation, until=until, setup=options["setup"])
    if options["show"]:
        click.echo(content, nl=False)
    else:
        slurm.submit(content, location, allocation, make_console())


def _submit_to_kuberay(config: StudyConfig | Series, location: str, until: str | None, options: dict[str, Any]) -> None:
    from kdstudy.launch import kuberay

    pods = kuberay.Pods(options["image"] or "", options["workers"], options["cpus_per_node"] or kuberay.WORKER_CPUS,
                        options["gpus_per_node"], options["memory"], options["namespace"],
                        variables(options["environment"]), options["env_from"])
    objects = kuberay.manifests(config, location, pods, until)
    if options["show"]:
        click.echo(kuberay.to_yaml(objects), nl=False)
    else:
        kuberay.submit(objects, location, make_console())


LAUNCHERS = {"ray": _submit_to_ray, "slurm": _submit_to_slurm, "kuberay": _submit_to_kuberay}

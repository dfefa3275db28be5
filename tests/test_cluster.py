"""Which cluster is used, and how it is divided among trials."""

import subprocess
import sys

import pytest

from kdstudy.config.sections import ResourceSettings
from kdstudy.errors import UserError
from kdstudy.tune.cluster import cluster_address, share


@pytest.mark.parametrize(("settings", "nodes", "concurrent", "gpus"), [
    ({}, [(2, 0)], 2, 0),
    ({"cpus_per_trial": 2}, [(5, 0), (3, 0)], 3, 0),  # a trial does not span nodes
    ({}, [(16, 8)], 8, 1),  # a GPU each where there are any
    ({"gpus_per_trial": 0.5}, [(16, 2), (16, 1)], 6, 0.5),
    ({"gpus_per_trial": 0.4}, [(16, 2)], 4, 0.4),  # nor do fractions span GPUs
    ({"gpus_per_trial": 2}, [(16, 3), (16, 4)], 3, 2),
    ({"gpus_per_trial": 0}, [(4, 8)], 4, 0),
    ({"concurrent": 1}, [(16, 8)], 1, 1),
    ({"cpus_per_trial": 4}, [(64, 0), (3, 4), (8, 4)], 2, 1),  # only the last node has both
    ({"cpus_per_trial": 4, "gpus_per_trial": 0}, [(64, 0), (3, 4), (8, 4)], 18, 0),
    ({"gpus_per_trial": 0.5}, [(0, 0), (3, 1), (1, 8)], 3, 0.5),  # a head that takes no work
])
def test_as_many_trials_as_fit(settings, nodes, concurrent, gpus):
    given = share(ResourceSettings(**settings), nodes)
    assert (given.concurrent, given.gpus) == (concurrent, gpus)


@pytest.mark.parametrize(("settings", "message"), [
    ({"cpus_per_trial": 8}, "resources.cpus_per_trial = 8 is more than the 4 CPUs that a machine has"),
    ({"gpus_per_trial": 3}, "resources.gpus_per_trial = 3 is more than the 2 GPUs that a machine has"),
    ({"gpus_per_trial": 1.5}, "must be a fraction below 1 or a whole number"),
])
def test_what_no_machine_can_give_is_refused_instead_of_waited_for(settings, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        share(ResourceSettings(**settings), [(4, 2), (4, 2)])


@pytest.mark.parametrize("settings", [{"cpus_per_trial": 8, "gpus_per_trial": 1}, {"cpus_per_trial": 8}])
def test_what_no_machine_has_together_is_refused_with_what_there_is(settings):
    """The machine with the GPUs lacks the CPUs."""
    with pytest.raises(UserError) as refused:
        share(ResourceSettings(**settings), [(16, 0), (4, 2), (4, 2)])
    assert str(refused.value) == (
        "no machine has both resources.cpus_per_trial = 8 and resources.gpus_per_trial = 1: there are 4 CPU + 2 "
        "GPU, 16 CPU + 0 GPU; make one of the two smaller")


@pytest.mark.parametrize("nodes", [[], [(0, 0)]])
def test_a_cluster_without_cpus_is_not_ready(nodes):
    with pytest.raises(UserError, match="the cluster has no node with CPUs; wait until"):
        share(ResourceSettings(), nodes)


@pytest.mark.parametrize(("given", "variable", "used"), [
    (None, "", None), (None, "local", None), ("local", "head:6379", None), (None, "head:6379", "head:6379"),
    ("other:6379", "head:6379", "other:6379"),
])
def test_the_address_is_what_is_given_or_else_what_the_environment_says(given, variable, used, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(given) == used


STARTS_LATE_ONCE = """
from ray._private.node import Node
from kdstudy.tune.cluster import connected

own, starts = Node.start_ray_processes, []

def late(node):
    own(node)
    starts.append(node)
    if len(starts) == 1:
        raise Exception("The current node timed out during startup. This could happen because the GCS is overloaded.")

Node.start_ray_processes = late
with connected() as ours:
    import ray._private.worker
    print(ours, len(starts), *sorted(ray._private.worker._global_node.all_processes))
"""


def test_a_ray_of_our_own_is_only_what_a_study_needs_and_gets_a_second_chance_to_start(tmp_path):
    """On a busy machine Ray may give up on a process that it has just begun to read from disk."""
    started = subprocess.run([sys.executable, "-c", STARTS_LATE_ONCE], cwd=tmp_path, capture_output=True, text=True)
    assert started.stdout == "True 2 gcs_server raylet\n", started.stderr

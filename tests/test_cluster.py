"""How a cluster is divided among trials."""

import pytest

from study.cluster import share
from study.config import ResourceSettings
from study.errors import UserError


@pytest.mark.parametrize(("settings", "nodes", "concurrent", "gpus"), [
    ({}, [(2, 0)], 2, 0),
    ({"cpus_per_trial": 2}, [(5, 0), (3, 0)], 3, 0),  # a trial does not span nodes
    ({}, [(16, 8)], 8, 1),  # a GPU each where there are any
    ({"gpus_per_trial": 0.5}, [(16, 2), (16, 1)], 6, 0.5),
    ({"gpus_per_trial": 0.4}, [(16, 2)], 4, 0.4),  # nor do fractions span GPUs
    ({"gpus_per_trial": 2}, [(16, 3), (16, 4)], 3, 2),
    ({"gpus_per_trial": 0}, [(4, 8)], 4, 0),
    ({"concurrent": 1}, [(16, 8)], 1, 1),
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

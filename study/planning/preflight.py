"""Preflight checks: detect problems with the settings, the machine or the cluster before the first trial, and report
each in one line with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdstudy.config.models import trained_models
from kdstudy.config.settings import own_functions
from kdstudy.errors import UserError
from kdstudy.planning.nodes import (
    ask,
    check_environment,
    check_storage,
    environment,
    probe,
    probed_location,
    temporary_room,
)
from kdstudy.planning.room import check_storage_room, check_temporary_room, room_needed
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables.functions import check as check_function
from kdstudy.tune.cluster import Node, Share, cluster_address, cluster_nodes, cluster_share, local_share, trials_on
from kdstudy.tune.connection import ClusterChecks
from kdstudy.watch.trackers import feed


def cluster_checks(study: Study) -> ClusterChecks:
    """Return the checks that an existing cluster must pass before the study runs on it."""
    return ClusterChecks(partial(check_cluster, study), partial(problems_of, study))


def check_settings(study: Study, address: str | None = None, stages: Sequence[str] | None = None,
                   machine: bool = True, sections: Sequence[str] | None = None) -> None:
    """Check what follows from the settings, the images and the models.

    stages: those that are wanted, all unless given. machine: also whether a trial fits on this machine, if the study
    would run here. sections: those whose pretrained weights are checked, all that are still to be trained unless
    given.

    Raises UserError.
    """
    if machine and cluster_address(address) is None:
        local_share(study.config.resources)
    feed.check(study.config)
    study.check_models()
    for section in pretrained_sections(study) if machine and sections is None else sections or ():
        study.context.check_weights(section)
    for search in study.searches:
        if search.is_warm_started and (stages is None or search.name in stages):
            search.prior_trials()


def pretrained_sections(study: Study) -> list[str]:
    """The sections whose training is still to begin with weights from a file or a hub."""
    wanted = [section for section, settings in trained_models(study.config).items() if settings.pretrained]
    return [section for section in wanted
            if any(stage.trains == section and not stage.is_finished for stage in study.stages.values())]


def check_here(study: Study, probed: bool = False) -> Share:
    """Check this machine, without Ray: that a trial fits, and that the study's storage can be written and has room.

    probed: whether the storage is known to be writable.

    Returns what a trial gets. Raises UserError.
    """
    given = local_share(study.config.resources)
    room = room_needed(study, given)
    if not probed and any(room.parts.values()):  # a finished study may lie where nothing can be written
        check_writable(study.storage)
    check_storage_room(study, room)
    check_temporary_room("this machine", given.concurrent, *temporary_room(), room)
    return given


def check_writable(storage: Storage) -> None:
    """Raises UserError if the study's storage is not writable."""
    with probe(probed_location(storage)):
        pass


def check_cluster(study: Study) -> Share:
    """Check the connected cluster: a trial fits, and every node that can take one has this machine's packages, shares
    the study's storage and has enough space.

    Returns each trial's share. Raises UserError.
    """
    given = cluster_share(study.config.resources)
    for problem in problems_of(study, given, cluster_nodes()).values():
        raise UserError(problem)
    check_storage_room(study, room_needed(study, given))
    return given


def problems_of(study: Study, given: Share, nodes: list[Node]) -> dict[Node, str]:
    """Run the node check on nodes that have room for trials. Returns the problem of each unusable node.

    Raises UserError if the study's storage is not writable.
    """
    trials = {node: count for node in nodes if (count := trials_on((node.cpus, node.gpus), given.cpus, given.gpus))}
    location, functions = probed_location(study.storage), own_functions(study.config)
    for name in functions.values():
        check_function(name)
    with probe(location) as mark:
        answers = ask(list(trials), location, mark, functions)
    here, problems = environment(functions), {}
    for node, answer in answers.items():
        try:
            if "silent" in answer:
                raise UserError(answer["silent"])
            check_environment(node, answer["environment"], here, functions)
            check_storage(node, answer, study.storage)
        except UserError as error:
            problems[node] = str(error)
    sound = [node for node in trials if node not in problems]
    room = room_needed(study, given) if sound else None  # builds the models, whose code may be what a node lacks
    for node in sound:
        try:
            most = min(study.config.resources.concurrent or trials[node], trials[node])
            check_temporary_room(f"node {node.name}", most, *answers[node]["temporary"], room)
        except UserError as error:
            problems[node] = str(error)
    return problems

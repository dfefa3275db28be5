"""What would go wrong on this machine or cluster, found before the first trial and said in one line with the remedy.

What a node of a cluster is asked runs there, where this package may be missing or another: those functions import all
they need, and travel as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.config.settings import own_functions
from kdstudy.errors import UserError
from kdstudy.store.storage import Storage
from kdstudy.trainables.functions import check as check_function
from kdstudy.tune.cluster import Node, Share, cluster_nodes, cluster_share, local_share, trials_on

if TYPE_CHECKING:
    from kdstudy.study import Study
from kdstudy.plan.nodes import _ask, _check_storage, _marked, _place, _temporary, check_environment, environment
from kdstudy.plan.room import _check_place_room, _check_temporary_room, room_needed


def check_here(study: Study) -> Share:
    """This machine, without Ray: whether a trial fits, and the study's place can be written and has room.

    Returns what a trial gets. Raises UserError.
    """
    given = local_share(study.config.resources)
    room = room_needed(study, given)
    if any(room.parts.values()):  # a study that is done may lie where nothing can be written
        check_place(study.storage)
    _check_place_room(study, room)
    _check_temporary_room("this machine", given.concurrent, *_temporary(), room)
    return given


def check_place(storage: Storage) -> None:
    """Raises UserError where the study's place cannot be written."""
    with _marked(_place(storage)):
        pass


def check_cluster(study: Study) -> Share:
    """The connected cluster: whether a trial fits, then, on every node that takes one, that its packages are those of
    this machine, that it shares the study's place, and that there is room.

    Returns what a trial gets. Raises UserError.
    """
    given = cluster_share(study.config.resources)
    for problem in problems_of(study, given, cluster_nodes()).values():
        raise UserError(problem)
    _check_place_room(study, room_needed(study, given))
    return given


def problems_of(study: Study, given: Share, nodes: list[Node]) -> dict[Node, str]:
    """What keeps trials from running on those of these nodes that have room for them, where there is something.

    Raises UserError where the study's place cannot be written.
    """
    trials = {node: count for node in nodes if (count := trials_on((node.cpus, node.gpus), given.cpus, given.gpus))}
    place, functions = _place(study.storage), own_functions(study.config)
    for name in functions.values():
        check_function(name)
    with _marked(place) as mark:
        answers = _ask(list(trials), place, mark, functions)
    here, problems = environment(functions), {}
    for node, answer in answers.items():
        try:
            if "silent" in answer:
                raise UserError(answer["silent"])
            check_environment(node, answer["environment"], here, functions)
            _check_storage(node, answer, study.storage)
        except UserError as error:
            problems[node] = str(error)
    sound = [node for node in trials if node not in problems]
    room = room_needed(study, given) if sound else None  # it builds the models, which may be what is missing
    for node in sound:
        try:
            most = min(study.config.resources.concurrent or trials[node], trials[node])
            _check_temporary_room(f"node {node.name}", most, *answers[node]["temporary"], room)
        except UserError as error:
            problems[node] = str(error)
    return problems

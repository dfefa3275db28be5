"""A study's connection to Ray, opened and checked when the first stage needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kdstudy.config.sections import ResourceSettings
from kdstudy.tune.cluster import (
    Node,
    Share,
    cluster_address,
    cluster_nodes,
    cluster_share,
    connected,
    describe_machine,
    waiting_note,
)
from kdstudy.tune.own_ray import RayLostError
from kdstudy.tune.slots import ClusterSlots, Slots

if TYPE_CHECKING:  # avoids importing Ray and torch, which a plan does not need
    import ray

    from kdstudy.trainables.task import Task


@dataclass(frozen=True)
class ClusterChecks:
    """Checks of a cluster that the user has started.

    cluster: checks all nodes and returns each trial's share; raises UserError. nodes: checks nodes that join later and
    returns, per unusable node, the problem.
    """

    cluster: Callable[[], Share]
    nodes: Callable[[Share, list[Node]], dict[Node, str]]


class KeptRay:
    """Ray for several studies, one after the other: started or joined when the first of them needs it, left at the end.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._ours: bool | None = None  # None: not connected

    def __enter__(self) -> KeptRay:
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._ours = None
        self._open.close()

    @contextlib.contextmanager
    def connected(self, address: str | None = None) -> Iterator[bool]:
        """Like `cluster.connected`, for one study; the connection outlives it, unless Ray itself has died."""
        if self._ours is None:
            self._ours = self._open.enter_context(connected(address))
        try:
            yield self._ours
        except RayLostError:
            self._leave()
            raise


@contextlib.contextmanager
def checked(address: str | None, resources: ResourceSettings, checks: ClusterChecks,
            note: Callable[[str], None], kept: KeptRay | None = None) -> Iterator[tuple[Share, set[str]]]:
    """Connect to Ray; yield each trial's share, and the ids of the nodes that were checked.

    kept: the connection that several studies share. Raises UserError if the cluster fails its checks.
    """
    with (kept.connected if kept else connected)(address) as ours:
        present = {node.id for node in cluster_nodes()}  # a node that joins during the checks is checked later
        given = cluster_share(resources) if ours else checks.cluster()
        if not ours and (waiting := waiting_note(given)):
            note(waiting)
        yield given, present


class Connection:
    """A context manager that connects to Ray on first use and disconnects at the end.

    note: called with messages for the user. on_connected: called with a description of the machine or cluster. kept:
    a connection to use that outlives this one.
    """

    def __init__(self, address: str | None, resources: ResourceSettings, checks: ClusterChecks,
                 note: Callable[[str], None], on_connected: Callable[[str], None], kept: KeptRay | None = None):
        self._address, self._resources, self._checks = address, resources, checks
        self._note, self._on_connected, self._kept = note, on_connected, kept
        self._open = contextlib.ExitStack()
        self._share: Share | None = None
        self._slots: Slots | None = None
        self._images: dict[int, Any] = {}  # those in the object store

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)

    @property
    def share(self) -> Share:
        """Each trial's share. Raises UserError if Ray cannot start or the cluster fails its checks."""
        if self._share is None:
            self._connect()
        return self._share

    @property
    def slots(self) -> Slots:
        """The slots that limit how many trials run concurrently."""
        if self._slots is None:
            self._connect()
        return self._slots

    def put(self, task: Task) -> ray.ObjectRef:
        """Put a stage's task into the object store, once connected: Ray would otherwise start by itself, in its own
        way. Tasks that share images store them once."""
        from kdstudy.trainables.object_store import put_task  # imports Ray and torch

        if self._share is None:
            self._connect()
        return put_task(task, self._images)

    def _connect(self) -> None:
        self._share, present = self._open.enter_context(
            checked(self._address, self._resources, self._checks, self._note, self._kept))
        if cluster_address(self._address) is None:
            self._slots = Slots(self._share.concurrent)
        else:
            self._slots = ClusterSlots(self._share, self._resources, partial(self._checks.nodes, self._share),
                                       self._note, present)
        self._open.callback(self._slots.close)
        self._on_connected(describe_machine())

"""Ray for the time of one study: connected when the first stage needs it, and checked before anything runs on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from kdstudy.config.settings import ResourceSettings
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
from kdstudy.tune.slots import ClusterSlots, Slots


@dataclass(frozen=True)
class ClusterChecks:
    """What is asked of a cluster that others have started.

    cluster: checks all nodes, and returns what a trial gets; raises UserError. nodes: for nodes that join later, what
    keeps trials from running on them.
    """

    cluster: Callable[[], Share]
    nodes: Callable[[Share, list[Node]], dict[Node, str]]


@contextlib.contextmanager
def checked(address: str | None, resources: ResourceSettings, checks: ClusterChecks,
            note: Callable[[str], None]) -> Iterator[Share]:
    """Ray, and what it has for trials. Raises UserError where a cluster that others have started will not do."""
    with connected(address) as ours:
        given = cluster_share(resources) if ours else checks.cluster()
        if not ours and (waiting := waiting_note(given)):
            note(waiting)
        yield given


class Connection:
    """Connects at the first use; a context manager that disconnects at its end.

    note: told what the user should know. on_connected: told, in words, what the study runs on.
    """

    def __init__(self, address: str | None, resources: ResourceSettings, checks: ClusterChecks,
                 note: Callable[[str], None], on_connected: Callable[[str], None]):
        self._address, self._resources, self._checks = address, resources, checks
        self._note, self._on_connected = note, on_connected
        self._open = contextlib.ExitStack()
        self._share: Share | None = None
        self._slots: Slots | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)

    @property
    def share(self) -> Share:
        """What each trial gets. Raises UserError where Ray cannot be started, or the cluster will not do."""
        if self._share is None:
            self._connect()
        return self._share

    @property
    def slots(self) -> Slots:
        """How many trials run at a time."""
        if self._slots is None:
            self._connect()
        return self._slots

    def _connect(self) -> None:
        self._share = self._open.enter_context(checked(self._address, self._resources, self._checks, self._note))
        if cluster_address(self._address) is None:
            self._slots = Slots(self._share.concurrent)
        else:
            self._slots = ClusterSlots(self._share, self._resources, partial(self._checks.nodes, self._share),
                                       self._note, {node.id for node in cluster_nodes()})
        self._open.callback(self._slots.close)
        self._on_connected(describe_machine())

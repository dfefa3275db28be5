"""Slots: how many trials may run concurrently, on a cluster whose nodes may join or leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kdstudy.config.sections import ResourceSettings
from kdstudy.trainables.messages import one_line
from kdstudy.tune.cluster import Node, Share, cluster_nodes, trials_on

COUNT_EVERY = 5.0  # seconds between two counts of the nodes
RETRY_SECONDS = 60.0  # seconds before a node check that could not run is retried
CLOSE_SECONDS = 10.0  # to wait for a running node check


class Slots:
    """A fixed number of slots, as on a single machine.

    refused: ids of nodes that failed the node check and get no trials.
    """

    def __init__(self, count: int):
        self._count = count
        self.refused: frozenset[str] = frozenset()

    def count(self) -> int:
        return self._count

    def close(self) -> None:
        """Stop checking nodes, since Ray may shut down."""


class OneSlot(Slots):
    """A single slot, with the refused nodes of other slots."""

    def __init__(self, others: Slots):
        self._others = others

    @property
    def refused(self) -> frozenset[str]:
        return self._others.refused

    def count(self) -> int:
        return min(1, self._others.count())


class ClusterSlots(Slots):
    """As many slots as fit on the live nodes. A node that joins counts once it passes the node check.

    check: the node check: takes nodes and returns, per unusable node, the problem. It may be slow and runs in its own
    thread. note: called with a message for each refused node. accepted: ids of the nodes that have already passed.
    """

    def __init__(self, share: Share, resources: ResourceSettings, check: Callable[[list[Node]], dict[Node, str]],
                 note: Callable[[str], None], accepted: set[str]):
        super().__init__(share.concurrent)
        self._share, self._resources, self._check, self._note = share, resources, check, note
        self._accepted, self._last_reason = set(accepted), None
        self._counted = self._next_check = time.monotonic()
        self._checking: threading.Thread | None = None
        self._closed = False

    def count(self) -> int:
        now = time.monotonic()
        if now - self._counted > COUNT_EVERY:
            self._counted = now
            self._recount(cluster_nodes())
        return self._count

    def _recount(self, nodes: list[Node]) -> None:
        """Update the number of slots, to at least one (whose trial then waits), and check nodes that have joined."""
        fits = sum(self._room(node) for node in nodes if node.id in self._accepted)
        self._count = max(1, min(fits, self._resources.concurrent or fits))
        joined = [node for node in nodes if node.id not in self._accepted | self.refused]
        busy = self._closed or (self._checking and self._checking.is_alive()) or time.monotonic() < self._next_check
        if joined and not busy:
            self._checking = threading.Thread(target=self._admit, args=(joined,), daemon=True)
            self._checking.start()

    def _room(self, node: Node) -> int:
        return trials_on((node.cpus, node.gpus), self._share.cpus, self._share.gpus)

    def _admit(self, joined: list[Node]) -> None:
        try:
            problems = self._check(joined)
            there = set(cluster_nodes())
        except Exception as error:  # the study's storage or Ray is unreachable
            self._postpone(one_line(error))
            return
        problems = {node: problem for node, problem in problems.items() if node in there}
        self.refused |= {node.id for node in problems}
        self._accepted |= {node.id for node in joined if node not in problems}
        for problem in problems.values():
            self._tell(f"{problem}. The node gets no new trials; fix this, then restart Ray on the node")
        self._counted = 0.0

    def _postpone(self, reason: str) -> None:
        self._next_check = time.monotonic() + RETRY_SECONDS
        if reason != self._last_reason:
            self._tell(f"cannot check the nodes that joined ({reason}); they get no slots until the check succeeds")
        self._last_reason = reason

    def _tell(self, text: str) -> None:
        if not self._closed:
            self._note(text)

    def close(self) -> None:
        self._closed = True
        if self._checking:
            self._checking.join(CLOSE_SECONDS)


def selector(refused: frozenset[str]) -> dict[str, str]:
    """A Ray label selector that matches all nodes except these."""
    return {"ray.io/node-id": f"!in({','.join(sorted(refused))})"}


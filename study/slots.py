"""How many trials run at a time on a cluster whose nodes come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from study.cluster import Node, Share, cluster_nodes, trials_on
from study.config import ResourceSettings
from study.errors import UserError

COUNT_EVERY = 5.0  # seconds between two looks at the nodes


class Slots:
    """As many as there were at the beginning: on a machine of one's own nothing changes.

    refused: Ray's names of nodes to which no trial is to be sent.
    """

    def __init__(self, count: int):
        self._count = count
        self.refused: frozenset[str] = frozenset()

    def count(self) -> int:
        return self._count


class OneSlot(Slots):
    """One at a time, where others would allow more."""

    def __init__(self, others: Slots):
        super().__init__(1)
        self.refused = others.refused


class ClusterSlots(Slots):
    """As many as fit on the nodes that are there. One that joins counts once `look` has found nothing wrong with it.

    look: takes nodes and says of each that trials cannot run on what is wrong with it; it may take long, and runs on a
    thread of its own. note: is told of such a node, which is refused.
    """

    def __init__(self, share: Share, resources: ResourceSettings, look: Callable[[list[Node]], dict[Node, str]],
                 note: Callable[[str], None]):
        super().__init__(share.concurrent)
        self._share, self._resources, self._look, self._note = share, resources, look, note
        self._accepted = {node.id for node in cluster_nodes()}  # the preflight has seen them
        self._counted = time.monotonic()
        self._looking: threading.Thread | None = None

    def count(self) -> int:
        now = time.monotonic()
        if now - self._counted > COUNT_EVERY:
            self._counted = now
            self._recount(cluster_nodes())
        return self._count

    def _recount(self, nodes: list[Node]) -> None:
        """At least one, which then waits."""
        fits = sum(self._room(node) for node in nodes if node.id in self._accepted)
        self._count = max(1, min(fits, self._resources.concurrent or fits))
        joined = [node for node in nodes if node.id not in self._accepted | self.refused]
        if joined and not (self._looking and self._looking.is_alive()):
            self._looking = threading.Thread(target=self._admit, args=(joined,), daemon=True)
            self._looking.start()

    def _room(self, node: Node) -> int:
        return trials_on((node.cpus, node.gpus), self._share.cpus, self._share.gpus)

    def _admit(self, joined: list[Node]) -> None:
        try:
            problems = self._look(joined)
        except UserError:  # the study's place cannot be written: trials will say so
            return
        self.refused |= {node.id for node in problems}
        self._accepted |= {node.id for node in joined if node not in problems}
        for problem in problems.values():
            self._note(f"{problem}. No trial is sent there meanwhile")
        self._counted = 0.0


def selector(refused: frozenset[str]) -> dict[str, str]:
    """A Ray label selector for all nodes but these."""
    return {"ray.io/node-id": f"!in({','.join(sorted(refused))})"}


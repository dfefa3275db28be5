"""How many trials run at a time while nodes come and go, and that a node is looked at before it counts."""

import threading

import pytest
from running import wait_for

from study import slots
from study.cluster import Node, Share
from study.config import ResourceSettings
from study.errors import UserError
from study.slots import ClusterSlots


@pytest.fixture
def cluster(monkeypatch):
    """Its nodes, at first one with four CPUs; every look counts."""
    nodes = [Node("a", "first", 4, 0)]
    monkeypatch.setattr(slots, "cluster_nodes", lambda: list(nodes))
    monkeypatch.setattr(slots, "COUNT_EVERY", -1.0)
    return nodes


def counted(look=lambda nodes: {}, note=print, **resources):
    return ClusterSlots(Share(2, 0, 2), ResourceSettings(cpus_per_trial=2, **resources), look, note)


def test_a_node_that_joins_counts_once_it_has_been_looked_at(cluster):
    looked, answered = [], threading.Event()

    def look(nodes):
        looked.append([node.name for node in nodes])
        answered.wait(10)
        return {}

    now = counted(look)
    assert now.count() == 2
    cluster.append(Node("b", "second", 6, 0))
    assert [now.count() for _ in range(3)] == [2, 2, 2]
    answered.set()
    wait_for(lambda: now.count() == 5)
    assert looked == [["second"]] and not now.refused


def test_a_node_on_which_trials_cannot_run_is_refused_and_named_once(cluster):
    notes = []
    now = counted(lambda nodes: {node: f"node {node.name} has no timm" for node in nodes if node.id == "b"},
                  notes.append)
    cluster += [Node("b", "second", 8, 0), Node("c", "third", 2, 0)]
    wait_for(lambda: now.count() == 3)
    assert [now.count() for _ in range(3)] == [3, 3, 3]
    assert now.refused == {"b"} and notes == ["node second has no timm. No trial is sent there meanwhile"]


def test_nodes_that_leave_no_longer_count_and_one_trial_waits_for_the_next(cluster):
    now = counted()
    cluster.clear()
    assert now.count() == 1


def test_no_more_run_than_are_wanted(cluster):
    now = counted(concurrent=3)
    cluster.append(Node("b", "second", 64, 0))
    wait_for(lambda: now.count() == 3)


def test_where_the_place_cannot_be_written_at_the_moment_a_node_is_looked_at_again(cluster):
    tries = []

    def look(nodes):
        tries.append(nodes)
        if len(tries) == 1:
            raise UserError("cannot write")
        return {}

    now = counted(look)
    cluster.append(Node("b", "second", 2, 0))
    wait_for(lambda: now.count() == 3)
    assert len(tries) == 2 and not now.refused

"""How many trials run at a time while nodes come and go, and that a node is checked before it counts."""

import threading

import pytest
from running import wait_for

from kdstudy.config.sections import ResourceSettings
from kdstudy.errors import UserError
from kdstudy.tune import slots
from kdstudy.tune.cluster import Node, Share
from kdstudy.tune.slots import ClusterSlots, OneSlot


@pytest.fixture
def cluster(monkeypatch):
    """Its nodes, at first one with four CPUs; every check counts them."""
    nodes = [Node("a", "first", 4, 0)]
    monkeypatch.setattr(slots, "cluster_nodes", lambda: list(nodes))
    monkeypatch.setattr(slots, "COUNT_EVERY", -1.0)
    return nodes


def counted(look=lambda nodes: {}, note=print, **resources):
    return ClusterSlots(Share(2, 0, 2), ResourceSettings(cpus_per_trial=2, **resources), look, note, {"a"})


def test_a_node_that_joins_counts_once_it_has_been_checked(cluster):
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
    assert now.refused == {"b"} and notes == ["node second has no timm. The node gets no new trials; fix this, "
                                              "then restart Ray on the node"]
    alone = OneSlot(now)
    assert alone.count() == 1 and alone.refused == {"b"}


def test_a_node_that_left_while_it_was_checked_gives_no_note(cluster):
    notes, looked = [], threading.Event()

    def look(nodes):
        del cluster[1:]
        looked.set()
        return {node: "cannot run a task" for node in nodes}

    now = counted(look, notes.append)
    cluster.append(Node("b", "second", 8, 0))
    now.count()
    assert looked.wait(10)
    now.close()
    assert not now.refused and not notes and now.count() == 2


def test_nothing_is_said_once_the_study_has_ended(cluster):
    notes, go_on = [], threading.Event()

    def look(nodes):
        go_on.wait(10)
        raise ConnectionError("Ray has ended")

    now = counted(look, notes.append)
    cluster.append(Node("b", "second", 8, 0))
    now.count()
    threading.Timer(0.2, go_on.set).start()
    now.close()
    assert notes == []


def test_nodes_that_leave_no_longer_count_and_one_trial_waits_for_the_next(cluster):
    now = counted()
    cluster.clear()
    assert now.count() == 1


def test_no_more_run_than_are_wanted(cluster):
    now = counted(concurrent=3)
    cluster.append(Node("b", "second", 64, 0))
    wait_for(lambda: now.count() == 3)


def test_a_node_check_that_cannot_run_is_noted_once_and_retried(cluster, monkeypatch, capfd):
    monkeypatch.setattr(slots, "RETRY_SECONDS", 0.05)
    tries, notes = [], []

    def look(nodes):
        tries.append(nodes)
        if len(tries) < 3:
            raise UserError("cannot write\nthere")
        return {}

    now = counted(look, notes.append)
    cluster.append(Node("b", "second", 2, 0))
    wait_for(lambda: now.count() == 3)
    assert len(tries) == 3 and not now.refused and capfd.readouterr().err == ""
    assert notes == ["cannot check the nodes that joined (cannot write there); they get no slots until the check "
                     "succeeds"]

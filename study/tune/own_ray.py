"""The Ray that a study starts on this machine: of which processes it consists, and noticing that one of them died.

Ray itself waits a minute for a process that died, and then ends the driver's process without an exception.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

NEEDED = ("gcs_server", "raylet")
# Ray's dashboard, the monitor of its autoscaler, and what prints the logs of workers: kdstudy uses none of them, and
# together they take half of Ray's start.
UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")
EPITAPH = "Raylet is terminated"  # with which Ray prints the end of a log into the study's lines


class RayLostError(BaseException):
    """A process of the study's own Ray died. No `Exception`, since Tune would answer one by asking Ray to clean up."""


def check_own_ray() -> None:
    """Raises RayLostError where a process died without which Ray does not work. A cluster that others started is not
    looked at."""
    import ray._private.worker  # takes seconds

    node = ray._private.worker._global_node
    for kind, process in node.dead_processes() if node else ():
        if kind in NEEDED:
            raise RayLostError(f"Ray's {kind} on this machine has died (exit code {process.returncode})")


@contextlib.contextmanager
def without_unused_processes() -> Iterator[None]:
    """Let a Ray that starts in this context leave out the processes that a study does not use."""
    from ray._private.node import Node  # takes seconds

    own = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}  # another version of Ray may differ
    try:
        for name in own:
            setattr(Node, name, lambda node, **options: None)
        yield
    finally:
        for name, method in own.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def without_epitaph() -> Iterator[None]:
    """Keep Ray from printing the log of a raylet that died: kdstudy says what happened in one line."""
    import ray._private.worker  # takes seconds

    module, name = ray._private.worker, "print_to_stdstream"
    own = getattr(module, name, None)

    def print_others(data: dict[str, Any], *more: Any, **options: Any) -> None:
        if not any(str(line).startswith(EPITAPH) for line in data.get("lines", ())):
            own(data, *more, **options)

    if own is not None:  # else this version of Ray works differently
        setattr(module, name, print_others)
    try:
        yield
    finally:
        if own is not None:
            setattr(module, name, own)

"""Notices that the Ray which a study started on this machine has lost one of its processes.

Ray itself waits a minute for them, and then ends the driver's process without an exception.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

NEEDED = ("gcs_server", "raylet")
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

"""Notices that the Ray which a study started on this machine has lost one of its processes.

Ray itself waits a minute for them, and then ends the driver's process without an exception.
"""

import ray._private.worker

NEEDED = ("gcs_server", "raylet")


class RayLostError(BaseException):
    """A process of the study's own Ray died. No `Exception`, since Tune would answer one by asking Ray to clean up."""


def check_own_ray() -> None:
    """Raises RayLostError where a process died without which Ray does not work. A cluster that others started is not
    looked at."""
    node = ray._private.worker._global_node
    for kind, process in node.dead_processes() if node else ():
        if kind in NEEDED:
            raise RayLostError(f"Ray's {kind} on this machine has died (exit code {process.returncode})")

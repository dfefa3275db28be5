"""Ray clusters of several nodes on this machine."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Nodes:
    """Real Ray nodes on this machine, each started by `ray start`."""

    def __init__(self, folder, **environment):
        self.folder, self._processes = folder, []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._environment |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", **environment}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, name, cpus, gpus=0, before="", **environment):
        """before: a shell command that changes what the node sees of the file system."""
        where = ["--address", self.address] if self._processes else [
            "--head", "--port", self.address.split(":")[1], "--include-dashboard", "false"]
        command = [*RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1", "--node-name",
                   name, "--num-cpus", str(cpus), "--num-gpus", str(gpus), *where]
        if before:
            command = ["unshare", "-m", "sh", "-c", f"{before} && exec {shlex.join(command)}"]
        log = self.folder / f"{name}.log"
        with open(log, "w") as output:
            self._processes.append(subprocess.Popen(command, stdout=output, stderr=output,
                                                    env=self._environment | environment))
        deadline = time.monotonic() + 60
        while "will now block forever" not in log.read_text():
            assert self._processes[-1].poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def raylet(self, name):
        """The process that takes a node's tasks."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_bytes().decode().split("\0")
                if command[0].endswith("/raylet") and f"--node-name={name}" in command and str(self.folder) in str(
                        command):
                    return int(path.parent.name)
        raise AssertionError(f"node {name} is not there")

    def names(self):
        """Per node, by the first eight digits of Ray's name for it, ours; asked of the cluster by a process of its own.
        """
        ask = ("import json, ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL'); "
               "print(json.dumps({node['NodeID'][:8]: node['NodeName'] for node in ray.nodes()}))")
        printed = subprocess.run([sys.executable, "-c", ask, self.address], env=self._environment, check=True,
                                 capture_output=True, text=True).stdout
        return json.loads(printed.splitlines()[-1])

    def stop(self):
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

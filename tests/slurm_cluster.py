"""A real SLURM on this machine, for tests: slurmctld here, and nodes that are network, PID, mount and host name
namespaces, each with its own address and /tmp. Needs Linux, root, and Debian's slurm-wlm, munge and iproute2.

Nothing of the machine's own configuration is read or changed: all files lie in one folder, which `SLURM_CONF` names.
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

# cred_expire: the seconds after which SLURM starts a requeued job again; 120 by default.
TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "ip", "unshare")
BRIDGE = "kd-slurm"
NETWORK = "10.98.7"
CONF = """
ClusterName=kdstudy
SlurmctldHost={host}({network}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout=20
KillWait=30
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP
"""
NODE = """
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mkdir -p /run/kd-slurm && mount --bind /tmp /run/kd-slurm
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
for kept in {kept}; do mkdir -p "/tmp/$kept" && mount --bind "/run/kd-slurm/$kept" "/tmp/$kept"; done
mount -t tmpfs tmpfs /sys/fs/cgroup
exec slurmd -D -N {name} -f {folder}/slurm.conf
"""


def missing() -> str:
    """What is missing for a SLURM here; "" if nothing is."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(tool for tool in TOOLS if shutil.which(tool) is None)


class SlurmCluster:
    """A cluster of nodes n1, n2, … of one CPU each. folder: for its files, shared by all nodes. kept: paths that the
    nodes share although they lie in /tmp."""

    def __init__(self, folder: str | Path, kept: Iterable[str] = (), nodes: int = 2):
        self.folder, self.names = Path(folder), [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._kept = sorted({os.path.relpath(path, "/tmp") for path in map(os.path.realpath, (str(folder), *kept))
                             if path.startswith("/tmp/")})
        self._nodes: dict[str, subprocess.Popen] = {}
        self._others: list[subprocess.Popen] = []

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder, host = self.folder, os.uname().nodename.split(".")[0]
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        lines = [f"NodeName={name} NodeAddr={NETWORK}.{10 + number} CPUs=1 RealMemory=4000 State=UNKNOWN"
                 for number, name in enumerate(self.names, 1)]
        (folder / "slurm.conf").write_text(CONF.format(host=host, network=NETWORK, folder=folder,
                                                       nodes="\n".join(lines)))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{NETWORK}.1 {host}", *(
            f"{NETWORK}.{10 + number} {name}" for number, name in enumerate(self.names, 1))]) + "\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._remove_network()  # of a test run that was killed
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        self._other("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                    f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
                    f"--seed-file={folder}/munge.seed")
        _until(lambda: (folder / "munge.socket").exists(), 10)
        self._other("slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf"))
        for number, name in enumerate(self.names, 1):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"kd-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", f"kd-{name}", "master", BRIDGE, "up")
            _run("ip", "-n", name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _run("ip", "-n", name, "link", "set", device, "up")
            self.start_node(name)
        _until(lambda: set(self("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, 60)

    def __call__(self, *command: str) -> str:
        """Run one of SLURM's commands. Returns what it prints."""
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True)
        return done.stdout if done.returncode == 0 else ""

    def start_node(self, name: str) -> None:
        kept = " ".join(map(shlex.quote, self._kept))
        with open(self.folder / f"{name}.out", "a") as log:
            self._nodes[name] = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--mount-proc", "--uts", "--mount",
                 "--kill-child", "bash", "-ec", NODE.format(name=name, folder=self.folder, kept=kept)],
                stdout=log, stderr=log, env=self.environment, start_new_session=True)

    def kill_node(self, name: str) -> None:
        """End a node and all that runs on it, as a power failure would."""
        node = self._nodes.pop(name)
        os.killpg(node.pid, signal.SIGKILL)  # with --kill-child its whole PID namespace
        node.wait()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job, such as JobState and Restarts; empty once SLURM has forgotten it."""
        words = self("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _other(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "w") as log:
            self._others.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment,
                                                 start_new_session=True))

    def __exit__(self, *error: object) -> None:
        for name in list(self._nodes):
            self.kill_node(name)
        for process in reversed(self._others):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._remove_network()

    def _remove_network(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "SLURM did not come up"
        time.sleep(0.2)

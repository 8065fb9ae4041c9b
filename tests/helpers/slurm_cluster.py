"""A real SLURM on this machine: a controller and three nodes, with names, ports and files of their own."""

import os
import shutil
import socket
import subprocess
import time

import psutil

PACKAGES = "slurmctld slurmd slurm-client munge"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")
# Addresses as names: Lightning's rank zero is found by the name of the first node, and no /etc/hosts has to be changed.
NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CONF = """
ClusterName=lit_extract_tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
MinJobAge=3600
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PartitionName=main Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=32 RealMemory=20000\n"
# cred_expire: a job that is queued again waits so many seconds, by default 120.


def why_not():
    """Why there can be no cluster here; None when it can be."""
    if os.name != "posix" or os.geteuid() != 0:
        return "SLURM's daemons need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {missing[0]}; on Debian: apt-get install {PACKAGES}"
    return None


class Cluster:
    """A context manager: the daemons run inside it, and all that they have started ends with it."""

    def __init__(self, folder):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.conf),
        }
        self.daemons = {}

    def __enter__(self):
        (self.folder / "state").mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        port, *ports = _free_ports(1 + len(NODES))
        nodes = [NODE.format(node=node, host=host, port=port) for node, port in zip(NODES, ports, strict=True)]
        self.conf.write_text("".join([CONF.format(host=host, port=port, folder=self.folder), *nodes]))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={key}", *files)
            self._wait_for("munged", (self.folder / "munge.socket").exists)
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            self._wait_for("nodes", lambda: self._idle() == sorted(NODES))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.daemons.values()):
            process.kill()
            process.wait()
        processes = self.processes()
        for process in processes:
            process.kill()
        assert psutil.wait_procs(processes, timeout=10)[1] == [], "something is left"

    def processes(self, **variables):
        """All processes of this cluster, and of its jobs, that have these environment variables."""
        wanted = {"SLURM_CONF": str(self.conf), **variables}
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if all(environment.get(name) == value for name, value in wanted.items()) and process.pid != os.getpid():
                found.append(process)
        return found

    def start_node(self, node):
        """Start a node's daemon, also when it was killed before."""
        self._start("slurmd", "-D", "-N", node)

    def kill_node(self, node):
        """Kill all of a node, as when its power is cut: first those that would report what happens to the others."""
        processes = self.processes(SLURMD_NODENAME=node)
        steps = {process.parent() for process in processes} - {None}
        for process in [self.daemons[node], *(step for step in steps if step.name() == "slurmstepd"), *processes]:
            process.kill()
        self.daemons[node].wait()

    def submit(self, script, *arguments, options=(), **variables):
        """``sbatch``; the number of the job, whose log goes to the folder of the cluster."""
        command = ["sbatch", "--parsable", "--gres=none", "--mem=1G", *options, script, *arguments]
        environment = {**self.environment, **variables}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def tool(self, *command):
        """Run one of SLURM's tools; what it prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def job(self, number):
        """What SLURM knows of a job, such as JobState and ExitCode."""
        words = self.tool("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, number):
        """What a job has printed, in all its starts."""
        return "".join(file.read_text() for file in self.folder.glob(f"lit-extract-{number}.log"))

    def wait(self, number, seconds=240):
        """Wait until a job has ended; its state."""
        self._wait_for(f"job {number}", lambda: self.job(number)["JobState"] in _ENDED, seconds)
        return self.job(number)["JobState"]

    def wait_until(self, number, condition, seconds=120):
        """Wait for something that a job does."""
        self._wait_for(f"job {number}", lambda: condition() or self.job(number)["JobState"] in _ENDED, seconds)
        assert condition(), f"{self.job(number)}\n{self.log(number)}"

    def _start(self, name, *arguments):
        with (self.folder / "daemons.log").open("a") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen([name, *arguments], env=self.environment, start_new_session=True, **streams)
        self.daemons[arguments[-1] if name == "slurmd" else name] = process

    def _idle(self):
        lines = self.tool("sinfo", "-h", "-N", "-o", "%N %T").splitlines() if self._answers() else []
        return sorted(line.split()[0] for line in lines if line.endswith(" idle"))

    def _answers(self):
        return not subprocess.run(["scontrol", "ping"], env=self.environment, capture_output=True).returncode

    def _wait_for(self, what, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: {seconds} s are over\n{self._logs()}"
            time.sleep(0.2)

    def _logs(self):
        return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log")))


_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

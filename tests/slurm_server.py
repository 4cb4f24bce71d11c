"""A real SLURM of one node, started from a temporary folder and stopped again."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol", "srun")
GPUS = 2
"""Fake ones: enough for what SLURM does with them."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.sock
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

RUNNING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")


def missing() -> str:
    """Why there can be no SLURM here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "SLURM daemons need root"


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Slurm:
    """Starts the daemons; a context manager. ``SLURM_CONF`` must be `conf` for every command."""

    def __init__(self, folder: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"

    def __enter__(self) -> "Slurm":
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool", "log", "munge"):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.conf.write_text(CONFIGURATION.format(folder=self.folder, host=host, ports=free_ports(2), gpus=GPUS))
        fakes = [self.folder / f"gpu{k}" for k in range(GPUS)]
        for fake in fakes:
            subprocess.run(["mknod", str(fake), "c", "1", "3"], check=True)
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={fake}\n" for fake in fakes))
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}
        munge = self.folder / "munge"
        self.call(
            "munged", "--force", f"--key-file={key}", f"--socket={munge}/munge.sock", f"--pid-file={munge}/munged.pid",
            f"--log-file={self.folder}/log/munged.log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.call("slurmctld", "-f", str(self.conf))
        self.call("slurmd", "-f", str(self.conf), "-N", host)
        deadline = time.monotonic() + 60
        while self.call("sinfo", "-h", "-o", "%T", check=False).strip() != "idle":
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text()[-2000:] for log in (self.folder / "log").iterdir())
                raise RuntimeError(f"SLURM does not start:\n{logs}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--full", "--state=RUNNING", "--user=root", check=False)
        self.call("scontrol", "shutdown", check=False)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/munged.pid"):
            file = self.folder / name
            if file.exists():
                subprocess.run(["kill", file.read_text().strip()], stderr=subprocess.DEVNULL)

    def call(self, *words: str, check: bool = True) -> str:
        """What a command says."""
        found = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        if check and found.returncode:
            raise RuntimeError(f"{' '.join(words)}: {found.stdout}{found.stderr}")
        return found.stdout

    def submit(self, folder: Path, *words: str, **environment: str) -> str:
        """Submit a script from a folder; the job's number."""
        found = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=folder, env=self.environment | environment, capture_output=True, text=True,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    def state(self, job: str) -> tuple[str, int]:
        """State of a job and its exit status."""
        line = self.call("scontrol", "show", "job", "-o", job)
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        return words["JobState"], int(words["ExitCode"].partition(":")[0])

    def wait(self, job: str, seconds: float = 240) -> tuple[str, int]:
        """Wait for a job to end."""
        deadline = time.monotonic() + seconds
        while (found := self.state(job))[0] in RUNNING:
            assert time.monotonic() < deadline, f"job {job} is still {found[0]}"
            time.sleep(0.3)
        return found

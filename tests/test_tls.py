"""The way to TLS of docs/cluster.md: who has the key is heard, and nobody else."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from whole_run import assert_same_run, configuration

from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import connect

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
BIN = str(Path(sys.executable).parent)


def exports() -> str:
    """The commands of the documentation."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    return text.partition("```bash\n")[2].partition("```")[0]


def bash(folder: Path, commands: str, **options):
    environment = os.environ | {"HOME": str(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", "-euo", "pipefail", "-c", exports() + commands]
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, **options)


USE = """
from csst_dask.runners.cluster import connect, known_workers
client = connect(scheduler_file="scheduler.json", quiet=True)
client.wait_for_workers(1, timeout=60)
print(client.submit(sum, [1, 2]).result(), client.scheduler.address[:6], *[name[:6] for name in known_workers(client)])
"""


def test_a_scheduler_of_ones_own(tmp_path):
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = "--scheduler-file scheduler.json --dashboard-address 127.0.0.1:0"
    scheduler = bash(tmp_path, f"exec dask scheduler --protocol tls {common} --port 0", **quiet)
    worker = None
    try:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.stat().st_size:
            assert scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker = bash(tmp_path, f"exec dask worker {common} --nthreads 1 --no-dashboard", **quiet)
        said, _ = bash(tmp_path, f"\"{sys.executable}\" -c '{USE}'", stdout=subprocess.PIPE).communicate(timeout=90)
        assert said.split() == ["3", "tls://", "tls://"]
        with pytest.raises(ConfigError, match="no certificates are known here"):
            connect(scheduler_file=file)
        assert (tmp_path / ".csst-dask-tls" / "key.pem").stat().st_mode & 0o077 == 0
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.terminate()
                process.wait(30)


def test_the_batch_scripts(tmp_path, exposures, weights, undisturbed):
    config = configuration(tmp_path / "run", exposures, weights)
    script = f"CSST_DASK_WORKERS=2 exec bash {ROOT}/scripts/run.sbatch {config}"
    process = bash(tmp_path, script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        said, _ = process.communicate(timeout=400)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert re.findall(r"Registered to: +(\w+)://", said) == ["tls", "tls"], said
    assert_same_run(undisturbed, tmp_path / "run")

"""Two real processes of one job, each with devices of its own: the numbers of one, and one line for what goes wrong."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from robust_vit.evaluation.autoattack import ledger
from robust_vit.training import checkpoint

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).parent / "two_hosts.py"
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
}


def start(what, folder, *place, devices=2, **environment):
    command = [sys.executable, str(SCRIPT), what, str(folder), *map(str, place)]
    given = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)} | environment
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def job(what, folder, **given):
    free = port()
    return [start(what, folder, index, free, **given) for index in range(2)]


def done(*processes, timeout=400):
    """Waits; returns what each said and its errors."""
    told = [process.communicate(timeout=timeout) for process in processes]
    assert all(process.returncode == 0 for process in processes), [errors[-2000:] for _, errors in told]
    return told


def weights(folder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.load(folder, "latest", "raw")[2])]


def close(there, here):
    for a, b in zip(weights(there), weights(here), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("devices", [2, 4])
def test_two_processes_measure_what_one_does(tmp_path, devices):
    """Attacked images, what is right, AutoAttack's flags; a ledger a host, joined."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    done(start("measure", one, devices=1))
    done(*job("measure", two, devices=devices))
    np.testing.assert_allclose(np.load(one / "attacked.npy"), np.load(two / "attacked.npy"), atol=1e-6)
    alone, together = (json.loads((folder / "flags.json").read_text()) for folder in (one, two))
    assert dict(zip(alone.pop("index"), alone.pop("right"))) == dict(zip(together.pop("index"), together.pop("right")))
    assert alone == together and "broken" in alone["status"]
    books = [ledger.read(two / "ledger" / "hosts" / f"{index}-of-2") for index in range(2)]
    indices = [{entry.index for entry in book.entries} for book in books]
    assert not indices[0] & indices[1] and len(indices[0] | indices[1]) == 24
    assert ledger.compare(one / "ledger", two / "ledger")[-1].startswith("24 points judged in both; 0 with another")


@pytest.mark.parametrize("sharding", ["fsdp", "replicated"])
def test_two_processes_train_what_one_does_and_either_resumes_the_other(tmp_path, sharding):
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    done(start("train", one, devices=1, SHARDING=sharding))
    done(*job("train", two, SHARDING=sharding))
    close(one, two)
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
        for folder in (one, two)
    ]
    assert len(losses[0]) == len(losses[1]) > 5
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    stopped = job("train", other, SHARDING=sharding)
    wait_for_row(other, 4, stopped[0])
    stopped[1].send_signal(signal.SIGTERM)
    said = done(*stopped)[0][0]
    assert "stopped by SIGTERM at step" in said
    resumed = done(start("train", other, devices=1, SHARDING=sharding))[0][0]  # on one process and one device
    assert "resuming at step" in resumed
    close(one, other)


def test_one_process_killed_ends_the_job_with_a_line_and_all_started_again_resume(tmp_path):
    processes = job("train", tmp_path)
    wait_for_row(tmp_path, 5, processes[0])
    processes[1].kill()
    began = time.monotonic()
    _, errors = processes[0].communicate(timeout=200)
    assert processes[0].returncode != 0 and time.monotonic() - began < 150
    assert "died" in errors or "distributed service detected fatal errors" in errors, errors[-3000:]
    processes[1].communicate()
    assert "resuming at step" in done(*job("train", tmp_path))[0][0]
    done(start("train", tmp_path / "whole", devices=1))
    close(tmp_path / "whole", tmp_path)


def wait_for_row(folder, row, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= row:
            return
        time.sleep(0.005)
    raise AssertionError(f"row {row} was never written: {process.communicate()}")


def test_workers_that_differ_are_named_at_start(tmp_path):
    processes = job("differ", tmp_path)
    told = [process.communicate(timeout=200)[1] for process in processes]
    assert all(process.returncode == 1 for process in processes), told
    for errors in told:
        line = [line for line in errors.splitlines() if line.startswith("error: ")][-1]
        assert "process 1 (" in line and "config.seed = 1, 0 of the first" in line
    assert not (tmp_path / "config.json").exists()


def test_a_coordinator_that_is_not_there_is_one_line(tmp_path):
    flags = ["--config=digits", f"--workdir={tmp_path}", "--processes=2", "--process=1", "--timeout=2"]
    command = [sys.executable, "-m", "robust_vit.main", *flags, f"--coordinator=localhost:{port()}"]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: coordinator = 'localhost:")

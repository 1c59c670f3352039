"""Kill a run at any moment, fill its disk, close its pipe: the same command continues it, to the same bits."""

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
from tiny_run import flags

from robust_vit.training import checkpoint

STEPS = 24  # 1.2 epochs of 1257 images in batches of 64


# Compiled as quickly as the tests themselves, and once for all processes.
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}


def start(workdir):
    experiment = "--config=configs/digits.py:adversarial"
    command = [sys.executable, "-m", "robust_vit.main", experiment, f"--workdir={workdir}"]
    overrides = flags(training__epochs=1.2, evaluation__suite="", optimizer__ema_decay=0.9)
    return subprocess.Popen(
        [*command, *overrides], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(workdir):
    process = start(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_row(workdir, row, process):
    """Blocks until metrics.jsonl has so many rows."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= row:
            return
        time.sleep(0.005)
    raise AssertionError(f"row {row} was never written: {process.stdout.read()}")


def final(workdir):
    _, _, raw, step = checkpoint.load(workdir, "latest", "raw")
    _, _, averaged, _ = checkpoint.load(workdir, "latest", "ema")
    assert step == STEPS
    return [*jax.tree.leaves(raw), *jax.tree.leaves(averaged)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(workdir)
    return final(workdir)


def kill(workdir, row, pause):
    process = start(workdir)
    wait_for_row(workdir, row, process)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def stop(workdir, row, name):
    """Asks it to stop, and checks that it does so in order."""
    process = start(workdir)
    wait_for_row(workdir, row, process)
    process.send_signal(SIGNALS[name])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"stopped by {name} at step" in output and "the same command resumes" in output
    stopped = int(output.split(f"stopped by {name} at step ")[1].split(",")[0])
    assert checkpoint.Checkpoints(workdir, read_only=True).latest() == stopped


def finishes_as(uninterrupted, workdir):
    assert "resuming at step" in finish(workdir)
    for there, here in zip(uninterrupted, final(workdir)):
        np.testing.assert_array_equal(there, here)
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in rows if '"train"' in line]
    assert len(steps) == STEPS  # each step's row once, for all that happened


def test_killed_and_told_to_stop_and_resumed_the_weights_are_the_same_bits(uninterrupted, tmp_path):
    kill(tmp_path, 5, 0.02)
    stop(tmp_path, 9, "SIGTERM")
    finishes_as(uninterrupted, tmp_path)


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_the_weights_are_the_same_bits(uninterrupted, tmp_path):
    for row, pause in ((1, 0.0), (5, 0.02), (9, 0.05), (16, 0.1)):  # between, during and after saves
        kill(tmp_path, row, pause)
    finishes_as(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_saves_and_exits_cleanly(uninterrupted, tmp_path, name):
    stop(tmp_path, 3, name)
    finishes_as(uninterrupted, tmp_path)


def tiny(workdir, *arguments, before=()):
    """A tiny run as a command, its output and its errors apart."""
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = ENVIRONMENT | {"PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "1"}
    script = str(pathlib.Path(__file__).parent / "tiny_run.py")
    command = [*before, sys.executable, script, str(workdir), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


# A write past 48 blocks, 24 kB, into a file fails, as on a full disk; every checkpoint is larger.
FULL_DISK = ("sh", "-c", 'ulimit -f 48; exec "$@"', "sh")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_with_space_made_the_same_command_goes_on(uninterrupted, tmp_path):
    output, errors = (process := tiny(tmp_path, before=FULL_DISK)).communicate(timeout=300)
    lines = [line for line in errors.splitlines() if "compilation cache" not in line]
    assert process.returncode == 1 and len(lines) == 1, errors
    assert lines[0].startswith(f"error: workdir = '{tmp_path}': cannot write a checkpoint: File too large; none was")
    assert "Traceback" not in errors and not (tmp_path / "lock.json").exists()
    output, errors = (process := tiny(tmp_path)).communicate(timeout=300)
    assert process.returncode == 0, errors
    for there, here in zip(uninterrupted, final(tmp_path)):
        np.testing.assert_array_equal(there, here)


@pytest.mark.slow
def test_a_closed_pipe_costs_the_output_and_nothing_else(uninterrupted, tmp_path):
    process = tiny(tmp_path)
    assert process.stdout.readline()
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == "" and process.wait(timeout=300) == 0
    for there, here in zip(uninterrupted, final(tmp_path)):
        np.testing.assert_array_equal(there, here)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_hosts_stop_at_the_same_step_when_one_is_told_to(tmp_path, number):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = [tiny(tmp_path, index, port) for index in range(2)]
    wait_for_row(tmp_path, 3, hosts[0])
    hosts[1].send_signal(number)
    (said, errors), _ = (host.communicate(timeout=120) for host in hosts)
    assert [host.returncode for host in hosts] == [0, 0], errors
    stopped = int(said.split("stopped by SIGTERM at step ")[1].split(",")[0])
    assert stopped < STEPS and checkpoint.Checkpoints(tmp_path, read_only=True).latest() == stopped
    hosts = [tiny(tmp_path, index, port) for index in range(2)]
    told = [host.communicate(timeout=300)[0] for host in hosts]
    assert all(host.returncode == 0 for host in hosts) and f"resuming at step {stopped}" in told[0]
    assert checkpoint.load(tmp_path, "latest")[3] == STEPS

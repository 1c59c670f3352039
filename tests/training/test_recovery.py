"""Kill a run at any moment: the same command continues it, to the same bits."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import flags

from robust_vit.training import checkpoint

STEPS = 24  # 1.2 epochs of 1257 images in batches of 64


def start(workdir):
    command = [sys.executable, "-m", "robust_vit.main", "--config=configs/digits.py", f"--workdir={workdir}"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    overrides = flags(training__epochs=1.2, evaluation__suite="", optimizer__ema_decay=0.9)
    return subprocess.Popen(
        [*command, *overrides], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def test_killed_again_and_again_and_resumed_the_weights_are_the_same_bits(uninterrupted, tmp_path):
    for row, pause in ((1, 0.0), (5, 0.02), (9, 0.05), (16, 0.1)):  # between, during and after saves
        process = start(tmp_path)
        wait_for_row(tmp_path, row, process)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    output = finish(tmp_path)
    assert "resuming at step" in output
    for there, here in zip(uninterrupted, final(tmp_path)):
        np.testing.assert_array_equal(there, here)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in rows if '"train"' in line]
    assert len(steps) == STEPS  # each step's row once, for all the kills


def test_sigterm_saves_and_exits_cleanly(uninterrupted, tmp_path):
    process = start(tmp_path)
    wait_for_row(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM at step" in output and "the same command resumes" in output
    stopped = int(output.split("stopped by SIGTERM at step ")[1].split(",")[0])
    assert checkpoint.Checkpoints(tmp_path, read_only=True).latest() == stopped
    finish(tmp_path)
    for there, here in zip(uninterrupted, final(tmp_path)):
        np.testing.assert_array_equal(there, here)

"""AutoAttack's programs compile for TPUs, and its chips do not wait for one another."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "compile_for_tpu.py"


@pytest.mark.slow
def test_attacks_compile_for_four_chips_without_collectives():
    pytest.importorskip("libtpu", reason="needs libtpu, which compiles for a TPU without one")
    options = ["--model=vit_tiny_patch16_224", "--topology=v5e:2x2", "--tile=8", "--attacks=apgd-t,square"]
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, SCRIPT, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("vit_tiny_patch16_224")]
    assert len(lines) == 2 and all(line.endswith("no collectives") for line in lines), done.stdout

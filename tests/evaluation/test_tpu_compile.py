"""AutoAttack's programs compile for TPUs, and its chips do not wait for one another."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from robust_vit import models
from robust_vit.evaluation.autoattack import ensembles, runs
from robust_vit.evaluation.scheduling import tile

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


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("pip install libtpu")
    assert "Traceback" not in done.stderr


FIELDS = dict(depths=(1,), widths=(8,), layer_scale=0.5, image_size=16, num_classes=10)


def lowered(platform):
    """The steps of an attack on a model with depthwise convolutions, lowered for a platform from this host."""
    module = models.build("convnext_tiny", **FIELDS)
    logits_fn = models.logits_fn(module, jax.eval_shape(lambda: models.init(module, jax.random.key(0))))
    run = runs.build(ensembles.part("apgd-ce"), "linf", classes=10)
    state = jax.eval_shape(lambda: tile.empty(tile.state_shapes(run, logits_fn, 8, (16, 16, 3)), 8))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    program = tile.steps_program(run, None).jitted
    return program.trace(logits_fn, state, count, count).lower(lowering_platforms=(platform,)).as_text()


def test_an_attack_compiled_on_a_cpu_host_for_a_tpu_holds_the_form_for_tpus():
    """Depthwise convolutions are grouped on a TPU and sums of shifted images on a CPU, whoever compiles."""
    grouped = {platform: re.findall(r"feature_group_count = (\d+)", lowered(platform)) for platform in ("tpu", "cpu")}
    assert "8" in grouped["tpu"] and "8" not in grouped["cpu"]

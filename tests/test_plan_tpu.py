"""`robust-vit plan` with libtpu: the programs are the TPU's own, and what does not fit is answered."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs"),
]

# In a process of its own: libtpu's compiler and the tests' own settings should not meet.
PROGRAM = """
import robust_vit, jax, re
from robust_vit import config as config_lib
from robust_vit.planning import chips, compiled
from robust_vit.training import experiment
from robust_vit.evaluation.autoattack import ensembles

def config(batch):
    c = config_lib.load_file("configs/digits.py:adversarial")
    c.model = config_lib.ConfigDict(dict(name="convnext_tiny", depths=(1,), widths=(8,), layer_scale=0.5, channels=1,
        image_size=8, num_classes=10, drop_path=0.0, dtype="float32", remat=False, scan=False, mean=(), std=(),
        patch_size=2))
    c.attack.steps, c.data.batch_size = 2, batch
    return c

topology = chips.describe("v5e:2x2")
assert (topology.count, topology.kind) == (4, "TPU v5e"), topology
run = experiment.build(config(64), mesh=topology.mesh)
step = compiled.training_step(run)
attack = compiled.attack_steps(ensembles.part("apgd-ce"), run.module, "linf", topology.mesh, 8)
for program in (step, attack):
    # a depthwise convolution is grouped on a TPU, and a sum of shifted images on a CPU: `parts.convolution`
    assert "8" in re.findall(r"feature_group_count = (\\d+)", program.lowered), "the CPU's form"
    assert 0 < program.peak < topology.chip.memory
assert step.collectives.get("all-reduce", 0) >= 1 and not attack.collectives, (step.talk, attack.talk)
print("OK", step.talk)
"""


def run(*arguments, timeout=500):
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
    )


def test_training_and_autoattack_hold_the_forms_for_tpus_and_fit():
    done = run("-c", PROGRAM)
    assert done.returncode == 0 and "OK" in done.stdout, done.stderr[-3000:]


TINY = ["--config=digits:adversarial", "--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"]


def test_what_does_not_fit_is_answered_with_what_does():
    """2**22 images a step want more than the chips have; in parts, or fewer of them, they fit."""
    flags = ["--topology=v5e:2x2", f"--config.data.batch_size={2**22}", "--config.attack.steps=1", "--noautoattack"]
    done = run("-m", "robust_vit.plan", *TINY, *flags, "--config.optimizer.warmup_epochs=0")
    assert done.returncode == 1 and "do not fit: it wants" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "largest batch that fits as it is: " in done.stdout and "fits at" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: plan: the training step does not fit on v5e:2x2")


def test_a_topology_that_does_not_exist_is_one_line():
    done = run("-m", "robust_vit.plan", *TINY, "--topology=v5e:3x7")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: topology = 'v5e:3x7': must be a topology such as v5e:4x4")

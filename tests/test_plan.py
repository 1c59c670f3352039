"""`robust-vit plan`: the arithmetic it counts, what it says of chips and of bad input, and the search for what fits."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from robust_vit import commands, models, plan
from robust_vit import config as config_lib
from robust_vit.planning import chips, compiled, data, estimate

TINY = ["--config=digits:adversarial", "--config.model.depth=1", "--config.model.width=16", "--config.model.heads=2"]
GPU = [*TINY, "--topology=gpu:8xH100"]


@pytest.fixture(scope="module")
def planned():
    """The plan of a tiny run on GPUs, and what it printed."""
    lines, kept = [], plan.say
    plan.say = lines.append
    try:
        figures = plan.plan(["plan", *GPU, "--price=2", "--utilisation=0.5", "--points=10", "--config.attack.steps=2"])
    finally:
        plan.say = kept
    return figures, lines


def forward(points=1):
    """Operations of the tiny model's matrix products on an image, by hand: 16 tokens of 2x2x1 pixels, width 16."""
    patches, qkv, attention, out, mlp, head = 4 * 16, 16 * 48, 2 * 16 * 16, 16 * 16, 2 * 16 * 64, 16 * 10
    return 2 * points * (16 * (patches + qkv + attention + out + mlp) + head)


def test_a_steps_operations_are_those_counted_by_hand(planned):
    """PGD-2: two passes forward and back to the image, then one forward and back to the weights."""
    figures, lines = planned
    attention = 2 * 128 * 16 * 2 * 16 * 16  # both factors of its products vary: backward they cost twice
    first = 2 * 128 * 16 * 4 * 16  # the patches need no gradient to the image in the pass that trains
    expected = 2 * (2 * forward(128) + attention) + 3 * forward(128) - first
    peak = 8 * chips.GPUS["H100"].peak32 * 0.5
    assert figures["step_seconds"] * peak == pytest.approx(expected, rel=1e-9)
    assert figures["chip_hours"] == pytest.approx(8 * figures["hours"])
    assert figures["cost"] == pytest.approx(2 * figures["chip_hours"])
    assert "not known without a compiler" in " ".join(lines) and "stated, not measured" in " ".join(lines)


def test_the_state_is_counted_to_the_byte(planned):
    module = models.build("vit", **dict(_model(), depth=1, width=16, heads=2))
    weights = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: models.init(module, jax.random.key(0)))))
    assert planned[0]["gradient"] == 4 * weights
    assert planned[0]["state"] == 4 * (3 * weights + 2)  # weights, two moments; the step, the optimiser's count


def _model():
    section = config_lib.plain(config_lib.load_file("configs/digits.py:adversarial").model)
    return {name: value for name, value in section.items() if name != "name"} | {"image_size": 8, "num_classes": 10}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--topology=v9:2x2"], "topology = 'v9:2x2': must be a topology such as v5e:4x4"),
        (["--topology=gpu:H100"], "topology = 'gpu:H100': must be a topology such as"),
        (["--topology=gpu:8xH10"], "topology: GPU = 'H10': must be one of A100, H100, H200; did you mean"),
        ([*GPU, "--utilisation=40"], "utilisation = 40.0: must be a share of the peak, in (0, 1]"),
        ([*GPU, "--price=-1"], "price = -1.0: must be above 0"),
        ([*GPU, "--config.data.batch_size=100"], "data.batch_size = 100: must be divisible by the number of devices"),
        (
            ["--topology=gpu:8xH100", "--config=imagenet100/light_recipe/xcit_n12"],
            "must be given, with --classes, for a plan without the data: data.options.path = None",
        ),
        ([*GPU, "--config.parallel.devices=4"], "parallel.devices = 4: must be left at 0: gpu:8xH100 has 8"),
        ([*GPU, "--examples=0"], "examples = 0: must be above 0"),
        ([*GPU, "--no_such"], "no_such"),
    ],
)
def test_bad_input_is_one_line(flags, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        commands.main(["robust-vit", "plan", *flags])
    assert line in str(stopped.value) and "\n" not in str(stopped.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_the_line_that_installs_it():
    with pytest.raises(SystemExit, match="error: topology = 'v5e:4x4': libtpu is not installed.*: pip install libtpu$"):
        commands.main(["robust-vit", "plan", *TINY, "--topology=v5e:4x4"])


def test_data_that_are_not_here_are_described():
    config = config_lib.load_file("configs/imagenet/light_recipe/xcit_s12_eps4.py")
    config.data.options.data_dir = "/nowhere"
    found, said = data.dataset(config)
    assert len(found.train) == 1_281_167 - 5000 and len(found.validation) == 5000 and found.num_classes == 1000
    assert found.image_shape == (224, 224, 3) and "1,276,167" in said
    config = config_lib.load_file("configs/imagenet100/light_recipe/xcit_n12.py")
    assert data.dataset(config, 126_689, 100)[0].num_classes == 100 and config.data.name == "synthetic"
    digits, nothing = data.dataset(config_lib.load_file("configs/digits.py"))
    assert nothing == "" and len(digits.test) == 360


def test_autoattacks_bound_is_that_of_the_paper():
    """9,760 forward passes for a point that survives everything: APGD-CE, nine targets of APGD-T and FAB-T, Square."""
    config = config_lib.base()
    module = models.build("vit", image_size=8, patch_size=4, width=16, depth=1, heads=2, num_classes=10)
    assert estimate.points_units(config, module) == pytest.approx(9760, rel=0.02)


@pytest.mark.parametrize(("limit", "expected"), [(7, None), (8, 8), (100, 96), (511, 480)])
def test_the_largest_batch_is_found_to_an_eighth_of_it(limit, expected):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    found = compiled.largest(fits, 512, 8)
    assert found == expected and all(batch % 8 == 0 for batch in tried) and len(tried) <= 10


def test_a_program_says_its_memory_and_its_collectives():
    mesh = Mesh(jax.devices()[:4], ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=split)
    found = compiled.compiled(jax.jit(lambda x: (x @ x.T).sum()), x)
    assert found.arguments == 2 * 16 * 4 and found.peak >= found.arguments and found.macs == 8 * 16 * 8
    assert found.collectives and "all" in found.talk and "stablehlo" in found.lowered


def test_out_of_memory_says_how_much():
    error = compiled.OutOfMemory("RESOURCE_EXHAUSTED: Ran out of memory. Used 32.00G of 15.75G hbm. Exceeded by 16.25G")
    assert (error.needed, error.available) == (32 * 2**30, 15.75 * 2**30)
    assert compiled.OutOfMemory("RESOURCE_EXHAUSTED").needed is None

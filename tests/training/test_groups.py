"""Layers, and what of a model stays as it is: in every family, unrolled and scanned, to the last bit."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from robust_vit import attacks, models, objectives
from robust_vit.models import summary
from robust_vit.models.parts import forms
from robust_vit.training import experiment, groups, optimizer, state, step

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
from tiny import TINY

BLOCKS = {  # how many layers lie between the embedding and the head
    "vit": 2,
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_cvst": 1,
    "swin": 3,
    "sparse_swin": 4,
    "efficientvit_b0": 5,
    "mobilevit_xxs": 3,
    "cait": 4,
    "xcit": 4,
    "resnet50_32": 3,
    "convnext_tiny": 3,
}


@functools.cache
def shapes(name, scan=False):
    return summary.shapes(models.build(name, **TINY[name], scan=scan))


def flat(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_family_has_an_embedding_its_blocks_and_a_head(name):
    found = groups.layers(groups.every_name(shapes(name)["params"]))
    assert sorted(set(found.values())) == list(range(BLOCKS[name] + 2))
    first, last = min(found, key=found.get), [one for one, number in found.items() if number == BLOCKS[name] + 1]
    assert found[first] == 0 and any("head" in one or "fc" in one for one in last)
    assert not any("block" in one or "attn" in one for one in last)


def test_blocks_follow_each_other_as_they_run():
    found = groups.layers(groups.every_name(shapes("cait")["params"]))
    order = ["cls_token", "blocks_0/attn/qkv/kernel", "blocks_1/attn/qkv/kernel"]
    order += ["blocks_token_only_0/attn/q/kernel", "blocks_token_only_1/attn/q/kernel", "norm/scale"]
    assert [found[one] for one in order] == [0, 1, 2, 3, 4, 5] and found["patch_embed/proj/kernel"] == 0
    found = groups.layers(groups.every_name(shapes("swin")["params"]))
    assert found["layers_1/downsample/reduction/kernel"] == found["layers_1/blocks_0/attn/qkv/kernel"] == 3
    deep = groups.layers([f"blocks_{i}/bias" for i in range(12)] + ["patch_embed/bias", "head/bias"])
    assert [deep[f"blocks_{i}/bias"] for i in range(12)] == list(range(1, 13))


@pytest.mark.parametrize("name", ["vit", "xcit", "swin"])
def test_scanned_blocks_have_the_scales_of_unrolled_ones(name):
    freeze = ("patch_embed", "*blocks_0/norm1")
    plain, stacked = (groups.scales(shapes(name, scan)["params"], 0.5, freeze) for scan in (False, True))
    module = models.build(name, **TINY[name], scan=True)
    full = jax.tree.map(lambda s, x: np.broadcast_to(s, x.shape), stacked, shapes(name, True)["params"])
    unstacked = flat(forms.to_unrolled(module, {"params": full})["params"])
    for path, scale in flat(plain).items():
        np.testing.assert_array_equal(unstacked[path], scale)
    assert flat(plain)["patch_embed/proj/kernel" if name != "xcit" else "patch_embed/proj_0_0/kernel"] == 0


def test_the_update_of_a_layer_is_that_of_the_head_times_a_power_of_the_decay():
    params = {"patch_embed": 1.0, "blocks_0": 2.0, "blocks_1": 3.0, "head": 4.0}
    params = {name: {"kernel": jnp.full((2,), value)} for name, value in params.items()}
    grads = jax.tree.map(jnp.ones_like, params)
    given = dict(weight_decay=0.1, momentum=0.0)
    plain, _ = (tx := optimizer.build("sgd", **given)).update(grads, tx.init(params), params)
    decayed, _ = (tx := optimizer.build("sgd", layer_decay=0.5, **given)).update(grads, tx.init(params), params)
    for name, power in {"patch_embed": 3, "blocks_0": 2, "blocks_1": 1, "head": 0}.items():
        np.testing.assert_allclose(decayed[name]["kernel"], plain[name]["kernel"] * 0.5**power, rtol=1e-6)


def test_lion_steps_by_signs_and_decays_kernels():
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([1.0, 1.0])}
    first = {"kernel": jnp.array([0.3, -4.0]), "bias": jnp.array([2.0, -1.0])}
    second = jax.tree.map(lambda g: -0.5 * g, first)
    tx = optimizer.build("lion", weight_decay=0.1)
    updates, memory = tx.update(first, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [1.1, -1.2], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], [1.0, -1.0], rtol=1e-6)
    updates, _ = tx.update(second, memory, params)
    mean = 0.9 * 0.01 * np.array([0.3, -4.0]) + 0.1 * -0.5 * np.array([0.3, -4.0])  # b1 of what b2 keeps
    np.testing.assert_allclose(updates["kernel"], np.sign(mean) + 0.1 * np.array([1.0, -2.0]), rtol=1e-6)


@pytest.fixture(scope="module")
def frozen():
    """Two steps of a model with BatchNorm in its frozen stem: (before, after)."""
    module = models.build(
        "xcit", image_size=8, channels=1, patch_size=4, stem_depth=2, width=16, heads=2, depth=2, class_depth=1,
        num_classes=4, scan=True,
    )  # fmt: skip
    freeze = ("patch_embed", "blocks_0", "cls_token")
    tx = optimizer.build("adamw", weight_decay=0.5, clip_norm=1.0, freeze=freeze)
    attack = attacks.fgsm(norm="linf", epsilon=0.1)
    made = step.make(
        module, objectives.build("standard"), attack, tx, num_classes=4, seed=0, awp_gamma=0.01, freeze=freeze
    )
    before = jax.jit(lambda: state.create(module, tx, (8, 8, 1), 0, False))()
    rng, current, compiled = np.random.default_rng(0), before, jax.jit(made)
    for _ in range(2):
        images = rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
        batch = {"image": images, "label": np.arange(8, dtype=np.int32) % 4, "index": np.arange(8, dtype=np.int32)}
        current, metrics = compiled(current, batch, np.float32(0.1), np.float32(1.0))
        assert metrics["finite"]
    return module, before, current


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(frozen):
    module, before, after = frozen
    old, new = (flat(forms.to_unrolled(module, made.variables())) for made in (before, after))
    still = ("params/patch_embed", "params/blocks_0", "params/cls_token", "batch_stats/patch_embed")
    still += ("batch_stats/blocks_0",)
    for name in old:
        same = np.asarray(old[name]).tobytes() == np.asarray(new[name]).tobytes()
        assert same == name.startswith(still), name


@pytest.mark.parametrize(
    ("decay", "freeze", "message"),
    [
        (1.0, ("patch_embd",), r"optimizer.freeze = 'patch_embd': names no parameter .* mean 'patch_embed'"),
        (1.0, ("*",), r"optimizer.freeze = \('\*',\): must be patterns that leave something to train"),
        (0.5, (), None),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(decay, freeze, message):
    params = shapes("vit")["params"]
    if message is None:
        return groups.validate(params, decay, freeze)
    with pytest.raises(ValueError, match=message) as error:
        groups.validate(params, decay, freeze)
    assert "\n" not in str(error.value)


def test_a_model_without_blocks_has_no_layers():
    with pytest.raises(ValueError, match="optimizer.layer_decay = 0.5: must be 1.0"):
        groups.validate({"Dense_0": {"kernel": np.zeros((2, 2))}}, 0.5, ())


@pytest.mark.parametrize("field", ["layer_decay", "freeze"])
def test_a_run_whose_model_lacks_what_is_named_is_refused(field):
    config = tiny_run.config(
        **{"optimizer__freeze": ("patch",)} if field == "freeze" else {"optimizer__layer_decay": 0}
    )
    with pytest.raises(ValueError, match=f"^optimizer.{field} = "):
        experiment.build(config)

"""ViT and DeiT: what each field does to the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.parts import positions as positions_module

RANK_PROMOTION = "allow"  # of the models that are made here

FIELDS = dict(depth=2, width=16, heads=2, patch_size=4, image_size=16, num_classes=5)
IMAGES = jax.random.uniform(jax.random.key(7), (3, 16, 16, 3))


def built(**fields):
    module = models.build("vit", **{**FIELDS, **fields})
    return module, models.init(module, jax.random.key(0))


def randomized(variables, seed=1):
    """Every parameter redrawn, so that zero and one initial values hide nothing."""
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(0.3 * jax.random.normal(k, leaf.shape) + 0.1 for k, leaf in zip(keys, leaves))


def shuffled_patches(images, order):
    patches = images.reshape(-1, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 4, 4, 3)[:, order]
    return patches.reshape(-1, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16, 3)


@pytest.mark.parametrize(
    ("fields", "tokens", "parameters"),
    [
        (dict(), 17, {"cls_token", "norm", "pos_embed"}),
        (dict(pooling="mean"), 16, {"fc_norm", "pos_embed"}),
        (dict(pooling="mean", class_token=True), 17, {"cls_token", "fc_norm", "pos_embed"}),
        (dict(distilled=True), 18, {"cls_token", "dist_token", "head_dist", "norm", "pos_embed"}),
        (dict(positions="sinusoidal"), 17, {"cls_token", "norm"}),
    ],
)
def test_parameters_carry_timms_names(fields, tokens, parameters):
    module = models.build("vit", **{**FIELDS, **fields})
    params = summary.shapes(module)["params"]
    assert set(params) == {"blocks_0", "blocks_1", "head", "patch_embed"} | parameters
    assert set(params["blocks_0"]) == {"attn", "mlp", "norm1", "norm2"}
    assert summary.count_tokens(module) == tokens
    if "pos_embed" in parameters:
        assert params["pos_embed"].shape == (1, tokens, 16)


@pytest.mark.parametrize(("positions", "invariant"), [("none", True), ("learned", False), ("relative", False)])
def test_only_positions_tell_patches_apart(positions, invariant):
    module, variables = built(positions=positions, pooling="mean")
    variables = randomized(variables)
    moved = shuffled_patches(IMAGES, np.random.default_rng(0).permutation(16))
    logits, others = module.apply(variables, IMAGES), module.apply(variables, moved)
    assert np.allclose(logits, others, atol=1e-5) == invariant


def test_sinusoidal_positions_are_the_learned_ones_set_to_the_formula():
    fixed, variables = built(positions="sinusoidal")
    learned, _ = built()
    params = {**variables["params"], "pos_embed": jnp.asarray(positions_module.sinusoidal(17, 16), jnp.float32)[None]}
    np.testing.assert_allclose(fixed.apply(variables, IMAGES), learned.apply({"params": params}, IMAGES), atol=1e-6)


def test_mean_pooling_leaves_prefix_tokens_out():
    module, variables = built(pooling="mean", class_token=True)
    variables = randomized(variables)
    logits, captured = models.capture(module, variables, IMAGES, ["tokens", "features"])
    mean = np.asarray(captured["tokens"][-1], np.float64)[:, 1:].mean(1)
    centred = mean - mean.mean(-1, keepdims=True)
    norm, head = (jax.tree.map(np.float64, variables["params"][name]) for name in ("fc_norm", "head"))
    features = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(captured["features"][0], features, atol=1e-4)
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], atol=1e-4)


def test_distilled_logits_are_the_mean_of_two_heads():
    module, variables = built(distilled=True)
    logits = module.apply(randomized(variables), IMAGES)
    params = randomized(variables)["params"]
    doubled = {**params, "head_dist": jax.tree.map(lambda x: 3 * x, params["head_dist"])}
    silent = {**params, "head_dist": jax.tree.map(jnp.zeros_like, params["head_dist"])}
    head_dist = 2 * (logits - module.apply({"params": silent}, IMAGES))
    np.testing.assert_allclose(module.apply({"params": doubled}, IMAGES), logits + head_dist, atol=1e-5)


def test_normalisation_sits_inside():
    plain, variables = built()
    inside = models.build("vit", **FIELDS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    outside = (IMAGES - jnp.array([0.1, 0.2, 0.3])) / jnp.array([0.4, 0.5, 0.6])
    np.testing.assert_allclose(inside.apply(variables, IMAGES), plain.apply(variables, outside), atol=1e-5)


@pytest.mark.parametrize("fields", [dict(remat=True), dict(attention="xla"), dict(remat=True, positions="relative")])
def test_other_formulations_are_the_same_function(fields):
    module, variables = built(positions=fields.get("positions", "learned"))
    other, variables = models.build("vit", **{**FIELDS, **fields}), randomized(variables)

    def value_and_gradient(module):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sin(module.apply(variables, x)).sum()))(IMAGES)

    for ours, theirs in zip(value_and_gradient(module), value_and_gradient(other)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_convolutional_stem_and_oblong_images():
    module = models.build(
        "vit_small_cvst", depth=1, width=16, heads=2, stem_width=4, image_size=[32, 64], num_classes=5
    )
    params = summary.shapes(module)["params"]
    # the state dict's numbers: the activations between them have one too
    assert set(params["patch_embed"]["proj"]) == {f"stem_{i}" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)}
    assert params["pos_embed"].shape == (1, 1 + 2 * 4, 16)
    logits = jax.eval_shape(module.apply, {"params": params}, jnp.ones((2, 32, 64, 3)))
    assert logits.shape == (2, 5)


def test_layer_scale_and_drop_path_act_on_the_branches():
    module, variables = built(layer_scale=0.0, drop_path=0.5)
    _, captured = models.capture(module, variables, IMAGES, ["tokens"])
    np.testing.assert_array_equal(captured["tokens"][0], captured["tokens"][1])  # a closed branch leaves tokens alone
    module, variables = built(drop_path=0.9, depth=6)
    evaluated = module.apply(variables, IMAGES)
    trained = module.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(3)})
    assert not np.allclose(evaluated, trained)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(patch_size=5), "patch_size = 5.*image_size = 16"),
        (dict(width=18, heads=4), "width = 18.*heads = 4"),
        (dict(pooling="max"), "pooling = 'max'.*mean, token"),
        (dict(positions="learnt"), "did you mean 'learned'"),
        (dict(attention="flash"), "attention = 'flash'.*einsum"),
        (dict(stem="conv"), "patch_size = 4.*16"),
        (dict(class_token=False), "class_token"),
        (dict(distilled=True, pooling="mean"), "distilled"),
        (dict(image_size=0), "image_size = 0"),
        (dict(num_classes=-1), "num_classes = -1"),
        (dict(drop_path=1.0), "drop_path = 1.0"),
        (dict(mean=(0.5, 0.5), std=(1.0, 1.0)), "mean = "),
        (dict(mean=(0.5,), std=()), "std = "),
        (dict(mean=(0.5,), std=(0.0,)), "std = .*positive"),
        (dict(dtype="int32"), "dtype = 'int32'"),
        (dict(dept=3), "did you mean 'depth'"),
    ],
)
def test_impossible_fields_are_refused_in_one_line(fields, words):
    with pytest.raises(ValueError, match=words) as caught:
        models.build("vit", **{**FIELDS, **fields})
    assert "\n" not in str(caught.value)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'vit_small_patch16_224'"):
        models.build("vit_smal_patch16_224")

"""CaiT: talking heads and class attention against their definitions, scanned and not, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.families import cait
from robust_vit.models.parts import captures, scanning

FIELDS = dict(depth=2, width=16, heads=2, patch_size=4, image_size=16, num_classes=5, layer_scale=0.5)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))


def randomised(module, x, *extras):
    """Variables of `module`, every one redrawn, so that no zero or one hides a mistake."""
    variables = module.init(jax.random.key(0), x, *extras)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, leaf.shape) * 0.3 for k, leaf in zip(keys, leaves)])


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def dense(parameters, x):
    return x @ np.asarray(parameters["kernel"], np.float64) + np.asarray(parameters["bias"], np.float64)


def test_talking_heads_mix_before_and_after_the_softmax():
    module = cait.TalkingHeadsAttention(heads=4)
    x = jax.random.normal(jax.random.key(2), (2, 5, 8))
    variables = randomised(module, x)
    p = variables["params"]
    qkv = dense(p["qkv"], np.asarray(x, np.float64)).reshape(2, 5, 3, 4, 2)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = np.einsum("baqd,bakd->bqka", q * 2**-0.5, k)
    weights = softmax(dense(p["proj_l"], scores).transpose(0, 3, 1, 2))
    mixed = dense(p["proj_w"], weights.transpose(0, 2, 3, 1))
    expected = dense(p["proj"], np.einsum("bqka,bakd->bqad", mixed, v).reshape(2, 5, 8))
    out, state = module.apply(variables, x, mutable=[captures.COLLECTION])
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(state[captures.COLLECTION]["attention"][0], weights, atol=1e-5)


def test_class_attention_is_the_first_row_of_self_attention():
    module = cait.ClassAttention(heads=2)
    x = jax.random.normal(jax.random.key(2), (2, 6, 8))
    variables = randomised(module, x)
    p = variables["params"]
    q, k, v = (dense(p[name], np.asarray(x, np.float64)).reshape(2, 6, 2, 4) for name in "qkv")
    weights = softmax(np.einsum("bqad,bkad->baqk", q, k) / 2)
    expected = dense(p["proj"], np.einsum("baqk,bkad->bqad", weights, v).reshape(2, 6, 8))[:, :1]
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=2e-5)


def test_scanned_equals_unrolled_with_gradients_and_captures():
    unrolled = models.build("cait", **FIELDS)
    scanned = unrolled.clone(scan=True, remat=True)
    variables = models.init(unrolled, jax.random.key(0))
    run = jax.jit(
        lambda m, v: (jax.grad(lambda x: jnp.sin(m.apply(v, x)).sum())(IMAGES), models.capture(m, v, IMAGES)),
        static_argnums=0,
    )
    ours, theirs = run(unrolled, variables), run(scanned, scanning.stack(variables))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    captured = ours[1][1]
    assert [weights.shape for weights in captured["attention"]] == [(2, 2, 16, 16)] * 2 + [(2, 2, 1, 17)] * 2
    assert [tokens.shape for tokens in captured["tokens"]] == [(2, 16, 16)] * 2 + [(2, 1, 16)] * 2
    for weights in captured["attention"]:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_drop_path_is_as_strong_in_the_first_block_as_in_the_last():
    module = models.build("cait", **{**FIELDS, "depth": 6}, drop_path=0.8, scan=True)
    variables = models.init(module, jax.random.key(0))
    keywords = dict(train=True, rngs={"dropout": jax.random.key(1)})
    images = jnp.tile(IMAGES, (32, 1, 1, 1))
    run = jax.jit(lambda v: models.capture(module, v, images, ["tokens"], **keywords)[1]["tokens"])
    tokens = run(variables)
    assert [t.shape[1] for t in tokens] == [16] * 6 + [1] * 2
    # with rate 0.8 both branches are dropped in 0.64 of the samples, and the block changes nothing
    same = [float((jnp.abs(b - a).max((1, 2)) == 0).mean()) for a, b in zip(tokens[:5], tokens[1:6], strict=True)]
    assert all(abs(share - 0.64) < 0.25 for share in same)
    assert float((jnp.abs(tokens[7] - tokens[6]).max((1, 2)) == 0).mean()) == 0  # class blocks never drop


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(patch_size=5), "patch_size = 5"),
        (dict(heads=3), "divisible by heads = 3"),
        (dict(attention="cudnn"), "attention = 'cudnn'"),
        (dict(class_depth=0), "class_depth = 0"),
    ],
)
def test_what_makes_no_model_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("cait", **{**FIELDS, **fields})

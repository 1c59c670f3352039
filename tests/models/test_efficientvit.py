"""EfficientViT: linear attention, its channel order, small images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.families import efficientvit

FIELDS = dict(widths=(8, 8, 16, 16), depths=(1, 2, 1, 1), strides=(2, 2, 2, 2), head_dim=8, head_widths=(16, 16))
IMAGES = jax.random.uniform(jax.random.key(7), (3, 32, 32, 3))


def build(**fields):
    return models.build("efficientvit_b0", **{**FIELDS, "image_size": 32, "num_classes": 5, **fields})


def test_linear_attention_is_its_map_times_values():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 2, 9, 4))
    weights = efficientvit.attention_map(q, k)
    np.testing.assert_allclose(efficientvit.linear_attention(q, k, v), weights @ v, atol=1e-5)
    assert float(weights.min()) >= 0


def test_a_query_without_a_matching_key_gets_nothing():
    q, k = -jnp.ones((1, 1, 2, 4)), jnp.ones((1, 1, 2, 4))
    out, gradient = jax.value_and_grad(lambda q: efficientvit.linear_attention(q, k, k).sum())(q)
    assert float(out) == 0 and np.isfinite(gradient).all()


def test_heads_come_before_queries_keys_and_values():
    module = efficientvit.LiteMLA(head_dim=2)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 4))
    variables = module.init(jax.random.key(1), x, False)
    near = np.asarray(x.reshape(9, 4) @ variables["params"]["qkv"]["conv"]["kernel"][0, 0])
    q, k, _ = np.maximum(near.reshape(9, 2, 3, 2), 0).transpose(2, 1, 0, 3)  # [part, head, N, d]
    scores = q @ k.swapaxes(-1, -2)
    expected = scores / (scores.sum(-1, keepdims=True) + 1e-5)
    _, state = jax.jit(lambda v, x: module.apply(v, x, False, mutable=["captures"]))(variables, x)
    found = state["captures"]["attention"][0]
    assert found.shape == (1, 4, 9, 9)  # two heads at each of two scales
    np.testing.assert_allclose(found[0, :2], expected, atol=1e-5)


def test_captures():
    module = build()
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    _, captured = jax.eval_shape(lambda v: models.capture(module, v, IMAGES), variables)
    assert [x.shape[1:] for x in captured["tokens"]] == [(8, 8, 8)] * 2 + [(4, 4, 16)] * 2 + [(2, 2, 16)] * 2
    assert [x.shape for x in captured["attention"]] == [(3, 4, 16, 16), (3, 4, 4, 4)]
    assert [x.shape for x in captured["features"]] == [(3, 16)]


def test_recomputed_blocks_are_the_same_training_step():
    module = build(widths=(8, 16, 16), depths=(1, 1, 1), strides=(4, 2, 2))
    variables = models.init(module, jax.random.key(0))

    def step(module):
        def loss(params):
            tree = {**variables, "params": params}
            logits, state = module.apply(tree, IMAGES, train=True, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), state

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    ours, theirs = step(module), step(module.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), ours, theirs)


def test_strides_set_the_grids_and_not_the_parameters():
    shapes, grids = [], []
    for strides in ((2, 2, 2, 2, 2), (1, 2, 2, 2, 2)):
        module = models.build("efficientvit_b0", image_size=32, num_classes=10, strides=strides)
        variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
        shapes.append(jax.tree.map(jnp.shape, variables))
        _, captured = jax.eval_shape(lambda v, m=module: models.capture(m, v, IMAGES, ["tokens"]), variables)
        grids.append(captured["tokens"][-1].shape[1:3])
    assert shapes[0] == shapes[1] and grids == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(scan=True), "scan = True"),
        (dict(drop_path=0.1), "drop_path = 0.1"),
        (dict(head_dim=5), "head_dim = 5"),
        (dict(depths=(1, 1)), "as long as widths"),
        (dict(strides=(2,)), "as long as widths"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)

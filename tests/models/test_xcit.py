"""XCiT: cross-covariance attention against its definition, the stem's strides, the class block's peculiar residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.families import xcit
from robust_vit.models.parts import scanning

FIELDS = dict(depth=2, width=16, heads=2, patch_size=4, image_size=16, num_classes=5)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))


def qkv(tokens=6):
    return [jax.random.normal(key, (2, tokens, 3, 4)) for key in jax.random.split(jax.random.key(2), 3)]


def test_cross_covariance_normalises_along_the_tokens():
    q, k, v = (np.asarray(x, np.float64).transpose(0, 2, 3, 1) for x in qkv())  # [B,A,d,N]
    temperature = np.array([0.5, 1.0, 2.0])[:, None, None]
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    scores = np.exp(q @ k.swapaxes(-1, -2) * temperature)
    weights = scores / scores.sum(-1, keepdims=True)
    expected = (weights @ v).transpose(0, 3, 1, 2)
    out, ours = xcit.cross_covariance(*qkv(), jnp.asarray(temperature, jnp.float32))
    np.testing.assert_allclose(ours, weights, atol=1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_channel_of_zeros_has_a_finite_gradient():
    q, k, v = qkv()
    q, k = q.at[:, :, 0, 1].set(0.0), jnp.zeros_like(k)
    value = lambda q, k, v: jnp.sin(xcit.cross_covariance(q, k, v, jnp.ones((3, 1, 1)))[0]).sum()  # noqa: E731
    gradients = jax.grad(value, (0, 1, 2))(q, k, v)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert float(jnp.abs(gradients[2]).min()) > 0


@pytest.mark.parametrize("patch_size, grid", [(1, 32), (2, 16), (4, 8), (8, 4), (16, 2)])
def test_the_last_convolutions_of_the_stem_stride(patch_size, grid):
    module = models.build("xcit", **{**FIELDS, "patch_size": patch_size, "image_size": 32})
    shapes = summary.shapes(module)
    assert summary.count_tokens(module) == grid**2
    stem = shapes["params"]["patch_embed"]
    assert [stem[f"proj_{2 * i}_0"]["kernel"].shape[-1] for i in range(4)] == [2, 4, 8, 16]  # whatever the strides


def test_small_image_names_have_the_weights_of_patch_16():
    small = models.build("xcit_nano_12_p4_32")
    large = models.build("xcit_nano_12_p16_224", num_classes=10)
    assert jax.tree.map(jnp.shape, summary.shapes(small)) == jax.tree.map(jnp.shape, summary.shapes(large))
    assert summary.count_tokens(small) == 64
    assert summary.count_tokens(models.build("xcit_nano_12_p8_224")) == 784


def test_weights_fit_any_image_size():
    module = models.build("xcit", **FIELDS)
    larger = jax.ShapeDtypeStruct((2, 32, 24, 3), jnp.float32)
    assert jax.eval_shape(module.apply, summary.shapes(module), larger).shape == (2, 5)


@pytest.mark.parametrize("tokens_norm", [True, False])
def test_class_block_doubles_the_patches_and_forgets_the_residual_of_the_token(tokens_norm):
    block = xcit.ClassBlock(heads=2, tokens_norm=tokens_norm)
    token, patches = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in enumerate((1, 5)))
    variables = block.init(jax.random.key(0), token, patches)  # biases 0 and scales 1: norms are plain
    zeroed = jax.tree.map(lambda x: x, variables)
    zeroed["params"]["mlp"]["fc2"]["kernel"] *= 0
    zeroed["params"]["attn"]["proj"]["kernel"] *= 0

    def norm(x):
        x = np.asarray(x, np.float64)
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    new_token, new_patches = block.apply(zeroed, token, patches)
    np.testing.assert_allclose(new_token, norm(token), atol=1e-5)
    kept = patches + norm(patches)
    np.testing.assert_allclose(new_patches, 2 * (norm(kept) if tokens_norm else kept), atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_scanned_equals_unrolled_with_gradients_and_statistics(train):
    unrolled = models.build("xcit", **FIELDS)
    scanned = unrolled.clone(scan=True, remat=True)
    variables = models.init(unrolled, jax.random.key(0))

    def run(module, variables):
        def value(x):
            logits, state = module.apply(variables, x, train=train, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), state

        gradient, state = jax.grad(value, has_aux=True)(IMAGES)
        return gradient, state, models.capture(module, variables, IMAGES)

    run = jax.jit(run, static_argnums=0)
    gradient, state, ours = run(unrolled, variables)
    other_gradient, other_state, theirs = run(scanned, scanning.stack(variables))
    pairs = ((gradient, scanning.stack(state), ours), (other_gradient, other_state, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *pairs)
    captured = ours[1]
    assert [weights.shape for weights in captured["attention"]] == [(2, 2, 8, 8)] * 2 + [(2, 2, 1, 17)] * 2
    assert [tokens.shape for tokens in captured["tokens"]] == [(2, 4, 4, 16)] * 2 + [(2, 17, 16)] * 2
    for weights in captured["attention"]:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(patch_size=3), r"patch_size = 3: must be one of \[1, 2, 4, 8, 16\]"),
        (dict(patch_size=16, stem_depth=3), r"one of \[1, 2, 4, 8\]"),
        (dict(image_size=18), "image_size = 18: must be divisible by patch_size = 4"),
        (dict(width=20), "divisible by 8"),
        (dict(attention="cudnn"), "attention = 'cudnn'"),
    ],
)
def test_what_makes_no_model_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("xcit", **{**FIELDS, **fields})

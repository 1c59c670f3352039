"""A masked autoencoder is the ViT that it becomes, sees what its mask leaves, and paints in the order of `patchify`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.families.masked_autoencoder import Masked, patchify

FIELDS = dict(depth=2, width=16, heads=2, patch_size=2, image_size=8, channels=1, num_classes=3, initializer="lecun")
DECODER = dict(decoder_width=16, decoder_depth=1, decoder_heads=2)
N, B = 16, 3


@pytest.fixture(scope="module", params=["token", "mean"])
def made(request):
    """(module, variables, images, the compiled call)."""
    module = models.build("masked_autoencoder", pooling=request.param, **FIELDS, **DECODER)
    variables = models.init(module, jax.random.key(0))
    return module, variables, jax.random.uniform(jax.random.key(1), (B, 8, 8, 1)), jax.jit(module.apply)


def some(keys):
    return jnp.stack([jax.random.permutation(key, N)[:4] for key in keys])


@pytest.fixture
def visible(key):
    return some(jax.random.split(key, B))


def test_without_a_mask_it_is_the_vit_of_the_same_weights(made):
    module, variables, images, apply = made
    vit = models.build("vit", pooling=module.pooling, **FIELDS)
    own = models.init(vit, jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, own) == {k: jax.tree.map(jnp.shape, variables["params"][k]) for k in own}
    same = {"params": {name: variables["params"][name] for name in own}}
    np.testing.assert_array_equal(apply(variables, images), jax.jit(vit.apply)(same, images))
    decoder = variables["params"].keys() - own.keys()
    assert decoder and all(name.startswith(("decoder_", "mask_token")) for name in decoder)


def test_what_is_hidden_is_not_seen_and_what_is_seen_matters(made, visible):
    _, variables, images, apply = made
    patches = patchify(images, 2)
    hidden = jnp.ones((B, N), bool).at[jnp.arange(B)[:, None], visible].set(False)
    found = apply(variables, Masked(images, visible))
    assert found.patches.shape == (B, N, 4) and found.latent.shape == (B, made[0].prefix + 4, 16)
    for changes, equal in ((hidden, True), (~hidden, False)):
        other = jnp.where(changes[..., None], 1 - patches, patches)
        other = other.reshape(B, 4, 4, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(B, 8, 8, 1)
        again = apply(variables, Masked(other, visible))
        assert np.array_equal(again.patches, found.patches) == equal


def test_the_order_of_the_visible_patches_does_not_matter(made, visible):
    _, variables, images, apply = made
    found, turned = (apply(variables, Masked(images, v)).patches for v in (visible, visible[:, ::-1]))
    np.testing.assert_allclose(turned, found, atol=1e-5)


def test_every_visible_patch_is_one_token_of_the_whole_image(made):
    """With all patches visible the encoder is the ViT's: its tokens are those that the classifier pools."""
    module, variables, images, apply = made
    every = jnp.broadcast_to(jnp.arange(N)[None], (B, N))
    latent = apply(variables, Masked(images, every)).latent
    _, captured = models.capture(module, variables, images, ["tokens"])
    tokens = captured["tokens"][-1]
    centred = tokens - tokens.mean(-1, keepdims=True)
    np.testing.assert_allclose(
        latent, centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6), atol=1e-4
    )


def test_patches_are_in_the_order_of_the_grid():
    rows = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    patches = np.asarray(patchify(jnp.asarray(rows), 2))
    assert patches.shape == (2, 6, 12)
    for i in range(6):
        y, x = divmod(i, 2)
        np.testing.assert_array_equal(patches[:, i], rows[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(2, -1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(positions="relative"), "positions = 'relative': must be 'learned', 'sinusoidal' or 'none'"),
        (dict(decoder_heads=3), "decoder_width = 16: must be divisible by decoder_heads = 3"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("masked_autoencoder", **(FIELDS | DECODER | fields))

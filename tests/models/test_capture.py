"""`models.capture`: complete, in order, the same scanned or not, and free when not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.parts import scanning

RANK_PROMOTION = "allow"  # of the models that are made here

FIELDS = dict(depth=11, width=16, heads=2, patch_size=8, image_size=16, num_classes=5)  # 11: "10" must follow "9"
IMAGES = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3))


@pytest.fixture(scope="module")
def vit():
    module = models.build("vit", **FIELDS)
    return module, models.init(module, jax.random.key(0))


def test_captures_are_complete_and_in_order(vit):
    module, variables = vit
    logits, captured = jax.jit(lambda v, x: models.capture(module, v, x))(variables, IMAGES)
    np.testing.assert_allclose(logits, module.apply(variables, IMAGES), atol=1e-6)
    assert [len(captured[name]) for name in models.CAPTURE_NAMES] == [11, 11, 1]
    for weights in captured["attention"]:
        assert weights.shape == (2, 2, 5, 5)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    steps = [float(jnp.abs(after - before).max()) for before, after in zip(captured["tokens"], captured["tokens"][1:])]
    whole = float(jnp.abs(captured["tokens"][-1] - captured["tokens"][0]).max())
    assert max(steps) < whole  # neighbours differ by one block's branch, the ends by ten
    head = variables["params"]["head"]
    np.testing.assert_allclose(captured["features"][0] @ head["kernel"] + head["bias"], logits, atol=1e-5)


def test_scanned_blocks_give_the_same_captures(vit):
    module, variables = vit
    scanned = module.clone(scan=True)
    _, ours = models.capture(module, variables, IMAGES)
    _, theirs = models.capture(scanned, scanning.stack(variables), IMAGES)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_a_fused_attention_shows_its_map_when_asked(vit):
    module, variables = vit
    _, ours = models.capture(module, variables, IMAGES, ["attention"])
    _, theirs = models.capture(module.clone(attention="xla"), variables, IMAGES, ["attention"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_captures_can_be_differentiated(vit):
    module, variables = vit

    def attention_to_class_token(images):
        _, captured = models.capture(module, variables, images, ["attention"])
        return captured["attention"][-1][..., 0].sum()

    assert float(jnp.abs(jax.jit(jax.grad(attention_to_class_token))(IMAGES)).max()) > 0


def test_nothing_is_kept_when_nobody_asks(vit):
    module, variables = vit
    assert set(variables) == {"params"}  # initialisation leaves no captures behind
    assert isinstance(module.apply(variables, IMAGES), jax.Array)
    plain = jax.jit(module.apply).lower(variables, IMAGES).compile().memory_analysis()
    assert plain.output_size_in_bytes < 256  # logits alone


def test_an_unknown_name_is_refused(vit):
    with pytest.raises(ValueError, match="did you mean 'attention'"):
        models.capture(*vit, IMAGES, ["atention"])

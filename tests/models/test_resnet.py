"""ResNet: where it strides, how it starts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.families import resnet

FIELDS = dict(depths=(1, 2), widths=(4, 8), stem_width=8, image_size=32, num_classes=5)
IMAGES = jax.random.uniform(jax.random.key(7), (2, 32, 32, 3))


def grids(name, **fields):
    module = models.build(name, **{**FIELDS, **fields})
    run = lambda v, x: models.capture(module, v, x, ["tokens"])[1]["tokens"]  # noqa: E731
    return [tokens.shape[1:] for tokens in jax.eval_shape(run, summary.shapes(module), IMAGES)]


def test_the_strided_stem_quarters_the_image_and_the_plain_one_keeps_it():
    assert grids("resnet50") == [(8, 8, 16), (4, 4, 32), (4, 4, 32)]
    assert grids("resnet50_32") == [(32, 32, 16), (16, 16, 32), (16, 16, 32)]


def test_the_stride_is_in_the_3x3_convolution():
    block = resnet.Bottleneck(4, stride=2)
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 16))
    variables = block.init(jax.random.key(0), x)
    seen = jax.grad(lambda x: jnp.square(block.apply(variables, x)).sum())(x)
    # the branch starts at zero, so only the shortcut is seen: every second pixel
    assert float(jnp.abs(seen[:, 1::2]).max()) == 0 and float(jnp.abs(seen[:, ::2, ::2]).max()) > 0
    variables["params"]["bn3"]["scale"] += 1
    seen = jax.grad(lambda x: jnp.square(block.apply(variables, x)).sum())(x)
    assert float(jnp.abs(seen[:, 1::2]).max()) > 0  # through the 3x3; a strided 1x1 would never see these


def test_residual_branches_start_at_zero():
    module = models.build("resnet50", **FIELDS)
    params = models.init(module, jax.random.key(0))["params"]
    assert float(jnp.abs(params["layer2_1"]["bn3"]["scale"]).max()) == 0
    assert float(params["layer2_1"]["bn2"]["scale"].min()) == 1
    kernel = params["layer2_1"]["conv2"]["kernel"]  # kaiming, fan out: variance 2 / (9 * 8)
    assert float(kernel.std()) == pytest.approx((2 / 72) ** 0.5, rel=0.15)


def test_gelu_replaces_every_relu():
    module = models.build("resnet50_gelu", **FIELDS)
    text = str(jax.make_jaxpr(module.apply)(summary.shapes(module), IMAGES))
    assert "erf" in text and "relu" not in text


def test_remat_changes_nothing():
    plain = models.build("resnet50_gelu", **FIELDS)
    variables = models.init(plain, jax.random.key(0))

    def value(x, module):
        return jnp.sin(module.apply(variables, x, train=True, mutable=["batch_stats"])[0]).sum()

    run = jax.jit(lambda m, x: jax.grad(value)(x, m), static_argnums=0)
    np.testing.assert_allclose(run(plain, IMAGES), run(plain.clone(remat=True), IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(activation="gleu"), "did you mean 'gelu'"),
        (dict(stem="plane"), "did you mean 'plain'"),
        (dict(scan=True), "scan = True: must be False"),
        (dict(widths=(4, 8, 16)), r"as long as depths = \(1, 2\)"),
    ],
)
def test_what_makes_no_model_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.build("resnet50", **{**FIELDS, **fields})

"""Every family against numbers that PyTorch computed: tests/data/golden, see the README there."""

import functools
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from robust_vit import models
from robust_vit.models.families import sparsevit
from robust_vit.models.weights import timm_names, torch_weights

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_builders import GOLDEN

FOLDER = pathlib.Path(__file__).parent.parent / "data" / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())
XCIT = [tag for tag in INDEX if "xcit" in tag]  # positions are float32 in the reference, whatever the precision

# By default every graph once in float64, and every family once in float32 and in training; the rest is slow.
LARGER = {"micro_mobilevit_64", "micro_efficientvit_64", "micro_convnext", "micro_deit"}
FAMILIES = {
    "micro_vit",
    "micro_cait",
    "micro_xcit_p4",
    "micro_swin",
    "micro_sparse_swin",
    "micro_efficientvit_32",
    "micro_mobilevit_tiny_48",
    "micro_resnet_gelu",
    "micro_convnext_cvst",
}


def slow_where(condition, tags=tuple(INDEX)):
    return [pytest.param(tag, marks=[pytest.mark.slow] if condition(tag) else []) for tag in tags]


GRAPHS = slow_where(lambda tag: tag in LARGER)
ONE_A_FAMILY = slow_where(lambda tag: tag not in FAMILIES)
BATCH_NORM = slow_where(lambda tag: tag not in FAMILIES, [tag for tag in INDEX if INDEX[tag]["buffers"]])

_spec = importlib.util.spec_from_file_location("redraw", FOLDER / "redraw.py")
_redraw = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_redraw)


@functools.cache
def reference(tag):
    arrays = dict(np.load(FOLDER / f"{INDEX[tag]['same_as'] if 'same_as' in INDEX[tag] else tag}.npz"))
    for name in ("x", "xgrad64", "train_xgrad"):
        if name in arrays:
            arrays[name] = arrays[name].transpose(0, 2, 3, 1)  # NCHW -> NHWC
    return arrays


def load(tag, dtype):
    """The model of a tag with its weights; the references were computed on plain pixels."""
    name, overrides = GOLDEN[tag]
    module = models.build(name, **{**overrides, "mean": (), "std": (), "dtype": dtype, "param_dtype": dtype})
    if INDEX[tag]["weights"] is None:
        tensors = _redraw.redraw({name: leaf.timm_shape for name, leaf in timm_names.leaves(module).items()})
    else:
        tensors = load_file(FOLDER / "weights" / INDEX[tag]["weights"])
    variables, report = torch_weights.from_timm(module, tensors)
    assert not report.problem()
    return module, variables


def loss(variables, images, labels, module, train=False):
    """Mean cross-entropy; auxiliary: logits and new running statistics."""
    if train:
        logits, state = module.apply(variables, images, train=True, mutable=["batch_stats"])
    else:
        logits, state = module.apply(variables, images), {}
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), (logits, state)


def relative(found, expected):
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def test_every_reference_has_a_model_and_every_weight_file_is_used():
    assert set(GOLDEN) == set(INDEX)
    used = {entry["weights"] for entry in INDEX.values()} - {None}
    assert used == {path.name for path in (FOLDER / "weights").iterdir()}


@pytest.mark.parametrize("tag", ONE_A_FAMILY)
def test_float32(tag):
    arrays = reference(tag)
    module, variables = load(tag, jnp.float32)
    run = jax.jit(jax.grad(functools.partial(loss, module=module), argnums=1, has_aux=True))
    gradient, (logits, _) = run(variables, jnp.asarray(arrays["x"], jnp.float32), arrays["y"])
    assert relative(logits, arrays["logits64"]) < 2e-5
    assert relative(gradient, arrays["xgrad64"]) < 1e-4


@pytest.mark.parametrize("tag", GRAPHS)
@pytest.mark.slow
def test_float64_with_the_gradient_of_every_parameter(tag):
    arrays = reference(tag)
    tolerance = 2e-6 if tag in XCIT else 1e-10
    with jax.enable_x64(True):
        module, variables = load(tag, jnp.float64)
        run = jax.jit(jax.grad(functools.partial(loss, module=module), argnums=(0, 1), has_aux=True))
        (by_parameter, by_pixel), (logits, _) = run(variables, jnp.asarray(arrays["x"], jnp.float64), arrays["y"])
        assert logits.dtype == by_pixel.dtype == np.float64
        assert relative(logits, arrays["logits64"]) < tolerance
        assert relative(by_pixel, arrays["xgrad64"]) < tolerance
        gradients = torch_weights.to_timm(module, {**variables, "params": by_parameter["params"]})
    flat = [np.asarray(gradients[name], np.float64).ravel() for name in INDEX[tag]["params"]]
    assert relative([np.linalg.norm(g) for g in flat], arrays["pgrad_norm"]) < tolerance
    assert relative([g @ np.cos(np.arange(g.size)) for g in flat], arrays["pgrad_dot"]) < tolerance


@pytest.mark.parametrize("tag", BATCH_NORM)
def test_batch_norm_in_training(tag):
    arrays = reference(tag)
    module, variables = load(tag, jnp.float32)
    run = jax.jit(jax.grad(functools.partial(loss, module=module, train=True), argnums=1, has_aux=True))
    gradient, (logits, state) = run(variables, jnp.asarray(arrays["x"], jnp.float32), arrays["y"])
    after = torch_weights.to_timm(module, {**variables, "batch_stats": state["batch_stats"]})
    statistics = np.concatenate([after[name].ravel() for name in INDEX[tag]["buffers"]])
    # The reference is float32 here, and two images on a map of 1x1 are an ill-conditioned batch. In float64 we differ
    # from it by at most 4.2e-5 (logits), 6.5e-6 (statistics) and 7.2e-4 (gradient; 1.5e-2 for micro_mobilevit_tiny_32).
    assert relative(logits, arrays["train_logits"]) < 1e-4
    assert relative(statistics, arrays["train_stats"]) < 1e-5
    assert relative(gradient, arrays["train_xgrad"]) < (2e-2 if tag == "micro_mobilevit_tiny_32" else 3e-3)


@pytest.mark.parametrize("tag", [tag for tag in INDEX if "sparse" in tag])
def test_sparse_swin_keeps_the_same_windows(tag, monkeypatch):
    arrays, orders = reference(tag), []
    rank = sparsevit.rank

    def recording(*arguments):
        orders.append(rank(*arguments))
        return orders[-1]

    @jax.jit
    def run(variables, images):
        module.apply(variables, images)
        return orders

    module, variables = load(tag, jnp.float32)
    monkeypatch.setattr(sparsevit, "rank", recording)
    orders = run(variables, jnp.asarray(arrays["x"]))
    kept, stage = [arrays[f"keep/{i}"] for i in range(sum(name.startswith("keep/") for name in arrays))], 0
    for ratios in module.ratios:
        pruned = [(i, kept.pop(0)) for i, ratio in enumerate(ratios) if ratio > 0]
        for i, expected in pruned:
            np.testing.assert_array_equal(orders[2 * stage + i % 2][:, : expected.shape[1]], expected)
        stage += bool(pruned)
    assert not kept

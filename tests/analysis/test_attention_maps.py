"""Attention as it is drawn: maps of every family against direct computations, rollout against float64, the shift."""

import functools

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import robust_vit as rv
from robust_vit import models
from robust_vit.analysis import attention, attention_plots
from robust_vit.models.families import sparsevit
from robust_vit.models.parts import collecting, forms, windowing

SMALL = dict(image_size=8, channels=1, patch_size=2, num_classes=3, width=16)
FIELDS = {
    "vit": dict(depth=2, heads=2, pooling="mean", **SMALL),
    "token": dict(depth=2, heads=2, pooling="token", **SMALL),
    "cait": dict(depth=1, heads=2, layer_scale=0.5, class_depth=2, **SMALL),
    "xcit": dict(depth=1, heads=2, **SMALL | {"width": 32}),
    "swin": dict(depths=(2,), heads=(2,), window_size=2, **SMALL),
    "sparse_swin": dict(depths=(2,), heads=(2,), window_size=2, ratios=((0.5, 0.5),), **SMALL),
    "mobilevit_xxs": dict(
        stem_width=8,
        widths=(8,),
        blocks=(1,),
        strides=(1, 2),
        transformer_widths=(16,),
        transformer_depths=(1,),
        heads=2,
        head_width=16,
        image_size=8,
        channels=1,
        num_classes=3,
    ),
    "efficientvit_b0": dict(
        mean=(),
        std=(),
        widths=(8, 8, 16),
        depths=(1, 1, 1),
        strides=(1, 1, 2),
        head_dim=8,
        head_widths=(16, 16),
        image_size=8,
        channels=1,
        num_classes=3,
    ),
}
IMAGES = np.asarray(jax.random.uniform(jax.random.key(3), (2, 8, 8, 1)))


@functools.cache
def model(name, **overrides):
    module = models.build("vit" if name == "token" else name, **FIELDS[name], **overrides)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    # larger weights, so that attention is far from uniform
    variables = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables)
    return models.logits_fn(module, variables)


@functools.cache
def maps_of(name):
    return attention.attention_maps(model(name), IMAGES)


def test_maps_of_a_vit_are_those_that_it_captures_scanned_or_not():
    layers = maps_of("vit")
    assert [(one.name, one.kind, one.grid, one.prefix) for one in layers] == [
        ("blocks_0.attn", "tokens", (4, 4), 0),
        ("blocks_1.attn", "tokens", (4, 4), 0),
    ]
    module, variables = attention.parts(model("vit"))
    _, captured = jax.jit(lambda v, x: models.capture(module, v, x, ["attention"]))(variables, IMAGES)
    for one, expected in zip(layers, captured["attention"], strict=True):
        np.testing.assert_allclose(one.maps, expected, atol=1e-6)
    scanned = attention.attention_maps(models.logits_fn(*forms.scanned(module, variables)), IMAGES)
    for one, other in zip(layers, scanned, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-5)


def test_a_classifier_shows_the_same_maps():
    shown = rv.Classifier(model("vit")).attention(IMAGES)
    for one, maps in zip(maps_of("vit"), shown, strict=True):
        np.testing.assert_array_equal(one.maps, maps)


def test_attention_of_zero_queries_and_keys_is_uniform():
    module, variables = attention.parts(model("token"))
    params = dict(variables["params"])
    for block in ("blocks_0", "blocks_1"):
        qkv = params[block]["attn"]["qkv"]
        kernel, bias = (np.array(qkv[name]) for name in ("kernel", "bias"))
        kernel[:, :32], bias[:32] = 0, 0
        params[block] = params[block] | {"attn": params[block]["attn"] | {"qkv": {"kernel": kernel, "bias": bias}}}
    uniform = models.logits_fn(module, {"params": params})
    for one in attention.attention_maps(uniform, IMAGES):
        np.testing.assert_allclose(one.maps, 1 / 17, rtol=1e-5)
        np.testing.assert_allclose(attention.looked_at(one), np.full((2, 2, 4, 4), 1 / 17), rtol=1e-5)
    # half of the class token, and of the uniform mixture of all, in each of two blocks: patches get 3/4 of 1/17 each
    np.testing.assert_allclose(attention.attention_rollout(uniform, IMAGES), 0.75 / 17, rtol=1e-5)


def test_rollout_is_the_product_of_what_blocks_mix():
    rng = np.random.default_rng(0)
    maps = [rng.dirichlet(np.ones(5), (2, 3, 5)) for _ in range(3)]  # [B,A,N,N]
    found = attention.rollout(maps)
    for example in range(2):
        expected = np.eye(5)
        for one in maps:
            step = np.zeros((5, 5))
            for q in range(5):
                for k in range(5):
                    step[q, k] = 0.5 * sum(one[example, head, q, k] for head in range(3)) / 3 + 0.5 * (q == k)
            expected = np.array(
                [[sum(step[i, m] * expected[m, j] for m in range(5)) for j in range(5)] for i in range(5)]
            )
        np.testing.assert_allclose(found[example], expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1)


SLOW = pytest.mark.slow  # to compile


@pytest.mark.parametrize(
    ("name", "least"), [("vit", 1.0), ("token", 0.5), ("cait", 0.5), pytest.param("xcit", 0.5, marks=SLOW)]
)
def test_rollout_shares_out_what_is_read(name, least):
    shares = attention.attention_rollout(model(name), IMAGES)
    assert shares.shape == (2, 4, 4) and (shares >= 0).all()
    total = shares.sum((1, 2))
    assert (total <= 1 + 1e-6).all() and (total > least * 0.7).all()
    if name == "vit":
        np.testing.assert_allclose(total, 1, rtol=1e-6)  # there is no class token to keep a share


@pytest.mark.parametrize("name", ["cait", pytest.param("xcit", marks=SLOW)])
def test_class_attention_is_of_the_blocks_in_which_the_class_token_asks(name):
    layers = maps_of(name)
    assert [one.kind for one in layers] == [{"cait": "tokens", "xcit": "channels"}[name], "class", "class"]
    found = attention.class_attention(model(name), IMAGES)
    assert len(found) == 2
    for maps, layer in zip(found, layers[1:]):
        np.testing.assert_array_equal(maps.reshape(2, 2, 16), layer.maps[:, :, 0, 1:])
        np.testing.assert_allclose(layer.maps.sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_rollout_of_class_attention_follows_the_token():
    """Two class blocks over patches that stay: token' = (a_0 token + sum_k a_k patch_k + token) / 2."""
    a, b = (one.maps.astype(np.float64).mean(1)[:, 0] for one in maps_of("xcit")[1:])
    share_of_token = (a[:, :1] + 1) / 2
    patches = a[:, 1:] / 2
    patches = b[:, 1:] / 2 + (b[:, :1] + 1) / 2 * patches
    found = attention.attention_rollout(model("xcit"), IMAGES)
    np.testing.assert_allclose(found.reshape(2, 16), patches, rtol=1e-6)
    assert (share_of_token < 1).all()


def direct_windows(name, block, x):
    """Attention of a Swin block among all tokens of the grid, in NumPy: from the tokens [h,w,C] that go in."""
    params = jax.tree.map(np.float64, attention.parts(model(name))[1]["params"]["layers_0"][f"blocks_{block}"])
    x = np.asarray(x, np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * params["norm1"]["scale"] + params["norm1"]["bias"]
    qkv = normed.reshape(16, -1) @ params["attn"]["qkv"]["kernel"] + params["attn"]["qkv"]["bias"]
    q, k, _ = qkv.reshape(16, 3, 2, 8).transpose(1, 2, 0, 3)  # [A,N,d]
    place = np.stack(np.divmod(np.arange(16), 4), -1)
    rolled = (place - block % 2) % 4  # a shift of one token towards the origin, in the second block
    wrapped = place < block % 2  # what came round keeps apart from what was there
    same = (rolled[:, None] // 2 == rolled[None] // 2).all(-1) & (wrapped[:, None] == wrapped[None]).all(-1)
    offset = rolled[:, None] - rolled[None] + 1  # 0 .. 2 inside a window
    rows = np.where(same, offset[..., 0] * 3 + offset[..., 1], 0)
    bias = params["attn"]["relative_position_bias_table"][rows].transpose(2, 0, 1)
    scores = np.where(same, q @ k.swapaxes(1, 2) / np.sqrt(8) + bias, -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def inputs_of(name):
    """The tokens that go into each block of the only stage."""
    module, variables = attention.parts(model(name))
    keep = {
        "capture_intermediates": lambda part, _: part.name == "patch_embed",
        "mutable": ["intermediates", "captures"],
    }
    _, state = jax.jit(lambda v, x: module.apply(v, x, **keep))(variables, IMAGES)
    (embedded,) = state["intermediates"]["patch_embed"]["__call__"]
    (after,) = state["captures"]["layers_0"]["blocks_0"]["tokens"]
    return np.asarray(embedded), np.asarray(after)


def test_windows_put_together_are_attention_on_the_whole_grid():
    layers, tokens = maps_of("swin"), inputs_of("swin")
    assert [one.maps.shape for one in layers] == [(2, 4, 2, 4, 4)] * 2 and attention.kept(layers[1]).all()
    for block, layer in enumerate(layers):
        for example in range(2):
            found = attention.put_together(layer, example)
            np.testing.assert_allclose(found, direct_windows("swin", block, tokens[block][example]), atol=2e-5)
            np.testing.assert_allclose(attention.looked_at(layer)[example].reshape(2, 16), found.mean(1), atol=1e-6)


def test_windows_that_are_kept_are_those_with_the_largest_activations():
    layers, tokens = maps_of("sparse_swin"), inputs_of("sparse_swin")
    for block, layer in enumerate(layers):
        shift = (block % 2,) * 2
        order = sparsevit.rank(tokens[0], (2, 2), shift)  # scored once, before the first block that prunes
        expected = sparsevit.keep_tokens(order, 2, (4, 4), (2, 2), shift)
        np.testing.assert_array_equal(attention.kept(layer), expected)
        for example in range(2):
            found = attention.put_together(layer, example)
            np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
            skipped = ~np.asarray(expected)[example].reshape(-1)
            np.testing.assert_array_equal(found[:, skipped], np.broadcast_to(np.eye(16)[skipped], (2, 8, 16)))
            direct = direct_windows("sparse_swin", block, tokens[block][example])
            np.testing.assert_allclose(found[:, ~skipped], direct[:, ~skipped], atol=2e-5)


@pytest.mark.slow
def test_mobilevit_asks_inside_of_interleaved_sequences():
    (layer,) = maps_of("mobilevit_xxs")
    assert layer.kind == "groups" and layer.maps.shape[1:3] == (4, 2)
    row, column = np.divmod(np.arange(16), 4)
    sequence = 2 * (row % 2) + column % 2
    for example in range(2):
        found = attention.put_together(layer, example)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(found > 0, np.broadcast_to(sequence[:, None] == sequence, found.shape))


@pytest.mark.slow
def test_the_linear_attention_of_efficientvit_shows_its_map_and_computes_the_same():
    logits_fn = model("efficientvit_b0")
    layers = maps_of("efficientvit_b0")
    assert layers and all(one.kind == "tokens" and one.grid[0] == one.grid[1] for one in layers)
    module, variables = attention.parts(logits_fn)
    seen = jax.jit(lambda v, x: collecting.collected(module, v, x, attention.POINTS)[0])(variables, IMAGES)
    np.testing.assert_allclose(seen, logits_fn(IMAGES), atol=1e-4)


def test_the_shift_is_the_total_variation_of_rows():
    layers = maps_of("token")
    moved = attention.attention_maps(model("token"), IMAGES[::-1])
    same = attention.attention_shift(layers, layers)
    assert [one.shape for one in same] == [(2, 2)] * 2 and not np.any(same)
    for clean, other, found in zip(layers, moved, attention.attention_shift(layers, moved)):
        expected = [
            [np.mean([0.5 * np.abs(p - q).sum() for p, q in zip(a, b)]) for a, b in zip(one, two)]
            for one, two in zip(clean.maps.astype(np.float64), other.maps.astype(np.float64))
        ]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert attention.total_variation([1.0, 0.0], [0.0, 1.0]) == 1
    assert attention.total_variation([0.5, 0.5], [0.5, 0.0]) == 0.5  # the other half went out of sight


def test_the_shift_of_other_windows_is_of_the_whole_grid():
    layers = maps_of("sparse_swin")
    moved = attention.attention_maps(model("sparse_swin"), IMAGES[::-1])
    assert any(not np.array_equal(a.slots, b.slots) for a, b in zip(layers, moved))
    for clean, other, found in zip(layers, moved, attention.attention_shift(layers, moved)):
        whole = [attention.put_together(clean, i) - attention.put_together(other, i) for i in range(2)]
        np.testing.assert_allclose(found, [0.5 * np.abs(one).sum(-1).mean(-1) for one in whole], atol=1e-6)
    with pytest.raises(ValueError, match="must be those of one model"):
        attention.attention_shift(layers, maps_of("vit"))


def test_the_shift_of_many_images_is_that_of_all_at_once(monkeypatch):
    images = np.concatenate([IMAGES, IMAGES[::-1], IMAGES])[:5]
    monkeypatch.setattr(attention_plots, "BATCH", 2)
    found = attention_plots.shift_of(model("vit"), images, images[::-1])
    whole = attention.attention_shift(*(attention.attention_maps(model("vit"), x) for x in (images, images[::-1])))
    for some, every in zip(found, whole, strict=True):
        np.testing.assert_allclose(some, every, atol=1e-6)


def test_what_is_missing_is_said_in_one_line():
    with pytest.raises(ValueError, match="rollout = .*must be asked of a model whose blocks attend between all"):
        attention.rolled(maps_of("swin"))
    with pytest.raises(ValueError, match="attention = 'function': must be asked of a model of robust_vit.models"):
        attention.attention_maps(lambda x: x, IMAGES)
    resnet = models.build("resnet50_32", depths=(1,), widths=(4,), stem_width=4, image_size=8, num_classes=3)
    images = np.zeros((1, 8, 8, 3), np.float32)
    without = models.logits_fn(resnet, jax.jit(resnet.init)(jax.random.key(0), images))
    with pytest.raises(ValueError, match="must be asked of a model that has attention maps"):
        attention.attention_maps(without, images)


def test_pictures_show_the_maps():
    layers, title = maps_of("vit"), "a title"
    figure = attention_plots.plot_attention({"clean": IMAGES[1]}, {"clean": layers}, 1, title)
    assert isinstance(figure, Figure)
    drawn = [axes.images[0].get_array() for axes in figure.findobj(lambda a: hasattr(a, "images") and a.images)]
    assert len(drawn) == 1 + 4
    for shown, expected in zip(drawn[1:], [head for one in layers for head in attention.looked_at(one)[1]]):
        np.testing.assert_allclose(shown, expected)
    shares = attention.attention_rollout(model("vit"), IMAGES)
    figure = attention_plots.plot_rollout({"clean": (IMAGES, shares)}, title, ["a", "b"])
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), shares[1])
    shifts = attention.attention_shift(layers, attention.attention_maps(model("vit"), IMAGES[::-1]))
    figure = attention_plots.plot_shift({"vit": shifts}, [attention_plots.short(one) for one in layers])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == [f"{value:.2f}" for one in shifts for value in one.mean(0)]
    sparse = maps_of("sparse_swin")
    figure = attention_plots.plot_kept(IMAGES, sparse)
    shown = figure.axes[0].images[0].get_array()
    inside = np.kron(attention.kept(sparse[0])[0], np.ones((2, 2), bool))
    np.testing.assert_allclose(shown[inside], np.repeat(IMAGES[0][inside], 3, -1))
    expected = 0.25 * IMAGES[0][~inside] + 0.75 * np.array(attention_plots.SKIPPED)
    np.testing.assert_allclose(shown[~inside], expected, rtol=1e-5)


def test_slots_say_where_a_token_stands():
    grid, window = (4, 6), (2, 3)
    slots = np.asarray(windowing.unpartition(windowing.slots(grid, window), window, grid))[0, ..., 0]
    tokens = np.arange(24).reshape(1, 4, 6, 1)
    windows = np.asarray(windowing.partition(tokens, window)).reshape(-1)
    np.testing.assert_array_equal(windows[slots], tokens[0, ..., 0])

"""Where a model looks: attention per layer and head, rollout, class attention, windows put back together, and how far
an attack shifts them.

    layers = rv.analysis.attention_maps(classifier, images)  # one a block, in the order they run
    layers[0].maps.shape, layers[0].kind  # (B, heads, N, N), "tokens"
    rv.analysis.attention_rollout(classifier, images)  # [B,h,w]
    rv.analysis.attention_shift(layers, rv.analysis.attention_maps(classifier, adversarial))[0]  # [B,heads] in [0,1]

Everything is NumPy arrays on the host; maps come from the points of `models.parts.taps`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check
from robust_vit.models.families import xcit
from robust_vit.models.parts import collecting
from robust_vit.typing import Array, LogitsFn, Variables

POINTS = ("attention_probabilities", "groups")


class Layer(NamedTuple):
    """The attention of one block.

    Attributes:
      name: of the module: "blocks_3.attn".
      kind: what asks and answers: "tokens" (all of them), "class" (the class token asks), "channels" (of a head:
        XCiT), "groups" (tokens inside a window or sequence: Swin, SparseViT, MobileViT).
      maps: [B,A,Q,K]; of groups [B,G,A,n,n]. Rows sum to 1.
      grid: (h, w) of the patches; of channels (0, 0).
      prefix: tokens that stand before the patches among the keys.
      slots: of groups, [B,h,w]: group * n + place of each token; -1 for one whose window was skipped. Else None.
    """

    name: str
    kind: str
    maps: np.ndarray
    grid: tuple[int, int]
    prefix: int = 0
    slots: np.ndarray | None = None


def attention_maps(model: LogitsFn, images: Any) -> list[Layer]:
    """The attention of every block, in the order they run.

    Args:
      model: a `Classifier` of a model of `robust_vit.models`, or what `models.logits_fn` returns.
      images: [B,H,W,C] floats in [0,1].

    Raises:
      ValueError: if the model has no attention maps.
    """
    maps, groups = traced_maps(model, images)
    groups = {path: np.asarray(value) for path, value in groups.items()}
    module, size = parts(model)[0], np.shape(images)[1:3]
    return [_layer(module, path, np.asarray(value), groups, size) for path, value in maps.items()]


def traced_maps(model: LogitsFn, images: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """The maps as the blocks hold them, [B,A,Q,K] with groups among the heads, and the places of groups; by the names
    of the modules. Differentiable, and jittable.
    """
    module, variables = parts(model)
    seen = _seen(module, variables, jnp.asarray(images))
    found: dict[str, dict[str, Array]] = {point: {} for point in POINTS}
    for name, value in sorted(seen.items()):
        _, path, point = name.split(" ")
        found[point][path] = value
    name = getattr(model, "name", type(module).__name__)
    check("attention", name, bool(found[POINTS[0]]), "asked of a model that has attention maps, such as a ViT")
    return tuple(found[point] for point in POINTS)


def parts(model: LogitsFn) -> tuple[Any, Variables]:
    """(module, variables) of a classifier.

    Raises:
      ValueError: if it is not of a model of `robust_vit.models`.
    """
    module = getattr(getattr(model, "func", None), "module", None)
    name = getattr(model, "name", type(model).__name__)
    check("attention", name, module is not None, "asked of a model of robust_vit.models")
    return module, model.args[0]


@functools.partial(jax.jit, static_argnums=0)
def _seen(module: Any, variables: Variables, images: Array) -> dict[str, Array]:
    """What goes through POINTS, under names that sort in the order of execution."""
    _, seen = collecting.collected(module, variables, images, POINTS)
    return {f"{i:05d} {'.'.join(one.path)} {one.point}": one.value for i, one in enumerate(seen)}


def _layer(module: Any, path: str, maps: np.ndarray, groups: dict[str, np.ndarray], size: tuple[int, int]) -> Layer:
    around = [place for place in groups if path.startswith(f"{place}.")]
    if around:
        slots = groups[max(around, key=len)]
        n = maps.shape[-1]
        maps = maps.reshape(maps.shape[0], int(slots.max()) // n + 1, -1, n, n)
        return Layer(path, "groups", maps, slots.shape[1:], 0, np.broadcast_to(slots, (len(maps), *slots.shape[1:])))
    if maps.shape[2] == 1 < maps.shape[3]:
        return Layer(path, "class", maps, _grid(maps.shape[3] - 1, size), 1)
    if isinstance(module, xcit.XCiT):
        return Layer(path, "channels", maps, (0, 0))
    prefix = getattr(module, "prefix", 0)
    return Layer(path, "tokens", maps, _grid(maps.shape[3] - prefix, size), prefix)


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the shape of the image, h * w = tokens."""
    height = max(1, round((tokens * size[0] / size[1]) ** 0.5))
    check("tokens", tokens, tokens % height == 0, f"a grid of the shape of the image, {size}")
    return height, tokens // height


def put_together(layer: Layer, example: int) -> np.ndarray:
    """Groups as attention among all tokens of the grid: [A,N,N], zero between tokens of different groups.

    A token whose window was skipped attends to itself. Rows sum to 1, less what windows gave to padding.
    """
    check("kind", layer.kind, layer.kind == "groups", "'groups': the others are together already")
    slots = layer.slots[example].reshape(-1)  # [N]
    n = layer.maps.shape[-1]
    group, place = slots // n, slots % n
    inside = (group[:, None] == group[None, :]) & (slots >= 0)[:, None]
    maps = layer.maps[example][group[:, None], :, place[:, None], place[None, :]].transpose(2, 0, 1)
    skipped = np.diag(slots < 0).astype(maps.dtype)
    return np.where(inside[None], maps, 0) + skipped[None]


def kept(layer: Layer) -> np.ndarray:
    """[B,h,w] booleans: the tokens of the windows that a block ran on (SparseViT's choice); of Swin all."""
    check("kind", layer.kind, layer.slots is not None, "'groups', which have windows")
    return layer.slots >= 0


def looked_at(layer: Layer) -> np.ndarray:
    """What each head looks at, [B,A,h,w]: the class token's row where there is one, else the mean over all that ask.

    Raises:
      ValueError: of attention among channels, which has no places.
    """
    check("kind", layer.kind, layer.kind != "channels", "attention among tokens; channels have no places")
    if layer.kind == "groups":
        rows = np.stack([put_together(layer, i).mean(1) for i in range(len(layer.maps))])
    elif layer.prefix:
        rows = layer.maps[:, :, 0, layer.prefix :]
    else:
        rows = layer.maps.mean(2)
    return rows.reshape(*rows.shape[:2], *layer.grid)


def class_attention(model: LogitsFn, images: Any) -> list[np.ndarray]:
    """The attention of the class token to the patches, [B,A,h,w] for every block in which it asks: all blocks of a ViT
    with a class token, the last ones of CaiT and XCiT.

    Raises:
      ValueError: if no class token asks anywhere.
    """
    found = [looked_at(one) for one in attention_maps(model, images) if one.kind != "channels" and one.prefix]
    check("class_attention", type(parts(model)[0]).__name__, bool(found), "asked of a model with a class token")
    return found


def rollout(maps: Sequence[Any]) -> np.ndarray:
    """How much of each input token is in each output token, if attention and the residual mix half and half.

        R = W_L ... W_1,  W_l = (mean over heads of A_l + I) / 2

    Args:
      maps: [B,A,N,N] of each block, in the order they run, rows summing to 1.

    Returns:
      [B,N,N] float64; rows sum to 1.

    Reference: Abnar & Zuidema, Quantifying Attention Flow in Transformers, ACL 2020.
    """
    found = None
    for one in maps:
        mixed = np.asarray(one, np.float64).mean(1)
        mixed = (mixed + np.eye(mixed.shape[-1])) / 2
        mixed = mixed / mixed.sum(-1, keepdims=True)
        found = mixed if found is None else mixed @ found
    check("maps", maps, found is not None, "of at least one block")
    return found


def attention_rollout(model: LogitsFn, images: Any) -> np.ndarray:
    """The share of every patch in what the classifier reads, by `rollout`: [B,h,w], summing to 1 but for the share of
    class tokens.

    It reads the class token, or the mean of the patches. Class attention (CaiT, XCiT) is rolled out for its token
    alone, on top of the blocks before it. XCiT's blocks attend among channels and count as leaving tokens in place.

    Raises:
      ValueError: of a model whose blocks attend inside windows or on several grids.
    """
    return rolled(attention_maps(model, images), getattr(parts(model)[0], "pooling", "token"))


def rolled(layers: Sequence[Layer], pooling: str = "token") -> np.ndarray:
    """`attention_rollout` of maps that are at hand; `pooling` is the model's."""
    tokens = [one for one in layers if one.kind == "tokens"]
    asking = [one for one in layers if one.kind == "class"]
    kinds = {one.kind for one in layers}
    whole = len({one.grid for one in tokens + asking}) == 1 and "groups" not in kinds
    check("rollout", sorted(kinds), whole, "asked of a model whose blocks attend between all of one grid of tokens")
    grid, prefix = (tokens or asking)[0].grid, tokens[0].prefix if tokens else 0
    count = grid[0] * grid[1]
    below = rollout([one.maps for one in tokens]) if tokens else np.eye(count)[None]  # [B or 1,N,N]
    if asking:
        read = _token_rollout(asking)  # [B,1+N]
        shares = np.einsum("bn,bnm->bm", read[:, 1:], np.broadcast_to(below, (len(read), *below.shape[1:])))
    else:
        shares = below[:, 0] if prefix and pooling == "token" else below[:, prefix:].mean(1)
    return shares[:, prefix:].reshape(-1, *grid)


def _token_rollout(asking: Sequence[Layer]) -> np.ndarray:
    """[B,1+N]: what is in the class token after its blocks, of itself at first and of the patches, which stay."""
    read = None
    for one in asking:
        row = np.asarray(one.maps, np.float64).mean(1)[:, 0]  # [B,1+N]
        if read is None:
            read = np.zeros_like(row)
            read[:, 0] = 1
        before = read
        read = (row * np.r_[0, np.ones(row.shape[1] - 1)] + row[:, :1] * before + before) / 2
    return read


def attention_shift(clean: Sequence[Layer], adversarial: Sequence[Layer]) -> list[np.ndarray]:
    """How far an attack moves attention: the total variation between the rows of two maps, half their L1 distance.

    0 where they are equal, 1 where they share no key; the mean over all that ask.

    Args:
      clean, adversarial: of `attention_maps`, of the same model on B pairs of images.

    Returns:
      [B,A] in [0,1] for every block.
    """
    return [_shift(a, b) for a, b in zip(clean, adversarial, strict=True)]


def _shift(clean: Layer, adversarial: Layer) -> np.ndarray:
    check("layers", (clean.name, clean.kind), clean[:2] == adversarial[:2], f"those of one model, {adversarial[:2]}")
    if clean.kind == "groups" and not np.array_equal(clean.slots, adversarial.slots):  # other windows were kept
        pairs = [(put_together(clean, i), put_together(adversarial, i)) for i in range(len(clean.maps))]
        return np.stack([total_variation(a, b).mean(-1) for a, b in pairs])
    rows = total_variation(clean.maps, adversarial.maps)  # [B,A,Q], of groups [B,G,A,n]
    return rows.mean((1, 3)) if clean.kind == "groups" else rows.mean(-1)


def total_variation(p: Any, q: Any) -> np.ndarray:
    """Half the L1 distance of distributions along the last axis; what one lacks in mass counts as a further key."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return (np.abs(p - q).sum(-1) + np.abs(p.sum(-1) - q.sum(-1))) / 2

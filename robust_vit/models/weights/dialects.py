"""Other spellings of the same weights: every known checkpoint's names -> timm's names.

A table, nothing else decides: prefixes that wrappers put before every name, normalisation layers that RobustBench and
the Light Recipe put before the model, and the released code of XCiT, Swin and ConvNeXt. DeiT's and CaiT's released
checkpoints already use timm's names.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

# What nn.DataParallel, normalising wrappers, nn.Sequential(normalize, model) and torch.compile put before every name
PREFIXES = ("module.", "model.", "_orig_mod.", "1.")

# Where wrappers keep the normalisation that they apply to the pixels; moved into the model's `mean` and `std`
NORMALIZATION = re.compile(
    r"^(?:module\.|model\.|attacker\.)*(?:(?:normalize|normalizer|preprocess|0)\.)?"
    r"(?P<field>(?:new_)?(?:mean|std)|mu|sigma)$"  # `new_`: MadryLab's `robustness`
)

ATTACKER = re.compile(r"^((?:module\.)*)attacker\.")

# Tensors that are no weights: (name, why they are left out)
IGNORED = (
    (re.compile(r"(^|\.)num_batches_tracked$"), "a counter that no computation reads"),
    (re.compile(r"\.relative_position_index$"), "computed from the window's size"),
    (re.compile(r"\.attn_mask$"), "computed from the grid and the window's size"),
)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The names of one code base."""

    name: str
    marker: str  # a name that only this dialect has
    rename: tuple[tuple[str, str | Callable[[re.Match], str]], ...]  # applied in order to every name
    split: str = ""  # names of packed (3 D, ...) tensors, whose thirds become .q, .k and .v in place of .qkv


DIALECTS = (
    Dialect(
        "XCiT (facebookresearch)",
        r"^pos_embeder\.|^cls_attn_blocks\.\d+\.attn\.qkv\.",
        ((r"^pos_embeder\.", "pos_embed."),),
        split=r"^(cls_attn_blocks\.\d+\.attn)\.qkv\.(weight|bias)$",
    ),
    Dialect(  # patch merging ends a stage there (stage 0 has one), and starts the next in timm
        "Swin (Microsoft)",
        r"^layers\.0\.downsample\.",
        (
            (r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
    Dialect(
        "ConvNeXt (facebookresearch)",
        r"^downsample_layers\.|^stages\.\d+\.\d+\.dwconv\.",
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv", ".mlp.fc"),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
)


@dataclasses.dataclass
class Translation:
    """A checkpoint under timm's names.

    Fields:
      tensors: timm's name -> array.
      original: timm's name -> name in the file.
      ignored: (name in the file, why) of what is no weight.
      normalization: {"mean": ..., "std": ...} as found in the file, or {}.
      notes: what was recognised, in words.
    """

    tensors: dict[str, np.ndarray]
    original: dict[str, str]
    ignored: list[tuple[str, str]]
    normalization: dict[str, tuple[float, ...]]
    notes: list[str]


def translate(tensors: dict[str, np.ndarray]) -> Translation:
    """Recognises whose names these are, and renames to timm's.

    Args:
      tensors: as in the file.

    Raises:
      ValueError: half a normalisation, or two tensors with one new name.
    """
    normalization, rest, notes = _take_normalization(tensors)
    copies = _copies(rest)
    rest = {name: array for name, array in rest.items() if name not in copies}
    prefix = _common_prefix(list(rest))
    if prefix:
        notes.append(f"prefix {prefix!r} removed from every name")
    names = {name: name.removeprefix(prefix) for name in rest}
    ignored = [(name, "the attacker's copy of the model's weights") for name in copies]
    ignored += [(name, why) for name in rest for pattern, why in IGNORED if pattern.search(names[name])]
    for name, _ in ignored:
        names.pop(name, None)
    out = Translation({}, {}, ignored, normalization, notes)
    dialect = next((d for d in DIALECTS if any(re.search(d.marker, new) for new in names.values())), None)
    if dialect is not None:
        notes.append(f"names of {dialect.name}")
    for name, new in names.items():
        for renamed, array in _rename(dialect, new, rest[name]):
            if renamed in out.tensors:
                raise ValueError(f"tensors {out.original[renamed]!r} and {name!r} both mean {renamed!r}")
            out.tensors[renamed], out.original[renamed] = array, name
    return out


def _copies(tensors: dict[str, np.ndarray]) -> list[str]:
    """Names of MadryLab's `robustness`: its attacker holds the model a second time, as `attacker.model.`.

    Raises:
      ValueError: the two are not equal.
    """
    found = [name for name in tensors if ATTACKER.search(name) and ATTACKER.sub(r"\1", name) in tensors]
    for name in found:
        twin = ATTACKER.sub(r"\1", name)
        if not np.array_equal(tensors[name], tensors[twin]):
            raise ValueError(f"tensors {name!r} and {twin!r} must be copies of each other, and differ")
    return found


def _rename(dialect: Dialect | None, name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if dialect is None:
        return [(name, array)]
    for pattern, replacement in dialect.rename:
        name = re.sub(pattern, replacement, name)
    packed = re.search(dialect.split, name) if dialect.split else None
    if packed is None:
        return [(name, array)]
    if array.shape[0] % 3:
        raise ValueError(f"tensor {name!r} has {array.shape[0]} rows: must be three times the width (q, k, v)")
    return [(f"{packed[1]}.{part}.{packed[2]}", third) for part, third in zip("qkv", np.split(array, 3))]


def _common_prefix(names: list[str]) -> str:
    """What wrappers put before every name, such as `module.model.`."""
    prefix = ""
    while names:
        found = next((p for p in PREFIXES if all(name.startswith(prefix + p) for name in names)), "")
        if not found:
            break
        prefix += found
    return prefix


def _take_normalization(tensors: dict[str, np.ndarray]) -> tuple[dict, dict[str, np.ndarray], list[str]]:
    """Separates the wrapper's mean and standard deviation (any shape, one value a channel) from the weights."""
    found, rest, names = {}, {}, []
    for name, array in tensors.items():
        match = NORMALIZATION.search(name)
        if match is None:
            rest[name] = array
            continue
        field = {"mu": "mean", "sigma": "std"}.get(match["field"], match["field"].removeprefix("new_"))
        values = tuple(_shortest(value) for value in np.asarray(array).reshape(-1))
        if found.setdefault(field, values) != values:
            raise ValueError(f"tensor {name!r}: another {field} stands in the file too, {found[field]}")
        names.append(name)
    if found and set(found) != {"mean", "std"}:
        raise ValueError(f"tensor {names[0]!r}: a normalisation needs both a mean and a standard deviation")
    return found, rest, [f"normalisation from {' and '.join(map(repr, names))}"] if found else []


def _shortest(value: np.floating) -> float:
    """The shortest decimal that rounds to this value: 0.485, not 0.48500001430511475."""
    return float(str(value))

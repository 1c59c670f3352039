"""PyTorch weights in, PyTorch weights out: timm's state dict <-> a Flax variables tree, for every family and scan form.

Names and layouts follow one rule (`timm_names.py`), other spellings are translated first (`dialects.py`).

Loading is strict: every weight of the model must be in the file and every tensor of the file must be explained, or it
is an error. Changes of shape are made only when asked for, and reported.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from robust_vit import models, provenance
from robust_vit.errors import check
from robust_vit.models.parts import forms
from robust_vit.models.weights import adapt, dialects, state_dicts, timm_names, twins
from robust_vit.models.weights.loading_report import LoadingReport
from robust_vit.typing import Variables


def to_timm(module: nn.Module, variables: Variables) -> dict[str, np.ndarray]:
    """Flax -> timm.

    Args:
      module: the model, in any scan form.
      variables: its variables, in the same form.

    Returns:
      timm's state dict; `num_batches_tracked` counters, which PyTorch expects beside running statistics, are 0.

    Raises:
      ValueError: the variables are not those of the module.
    """
    flat = timm_names.flatten(forms.to_unrolled(module, variables))
    out = {}
    for name, leaf in timm_names.leaves(module).items():
        array = flat.pop(leaf.path, None)
        check("variables", "/".join(leaf.path), array is not None, "present: they are not those of this module")
        array = np.asarray(array)
        check("/".join(leaf.path), array.shape, array.shape == leaf.shape, f"of shape {leaf.shape}")
        out[name] = leaf.to_torch(array)
        if leaf.path[0] == "batch_stats" and leaf.path[-1] == "var":
            out[name.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    check("variables", ["/".join(path) for path in flat][:3], not flat, "those of this module, and no more")
    return out


def from_timm(
    module: nn.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    new_head: bool = False,
    resize: str = "",
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[Variables, LoadingReport]:
    """timm -> Flax, strictly; other dialects must have been translated (`dialects.translate`).

    Args:
      module: the model that is wanted, in any scan form.
      tensors: timm's names -> arrays of any floating-point type.
      new_head: leave out the classifier in the file and initialise the model's, if it has one.
      resize: "" (positions and relative biases must fit), "antialias" (bicubic, as timm resizes positions) or "plain"
        (bicubic without antialiasing, as the Light Recipe does).
      grid: (h, w) tokens that the positions in the file are for; by default a square.
      seed: of a new head.

    Returns:
      The variables in the module's form, and the report, to be judged by the caller (`report.problem()`).

    Raises:
      ValueError: a tensor of integers, or of numbers that are not finite.
    """
    flat, head, report = place(module, tensors, new_head=new_head, resize=resize, grid=grid)
    if head and not report.problem():
        flat.update(adapt.initial_leaves(module, head, seed))
    return forms.to_form_of(module, timm_names.unflatten(flat)) if not report.problem() else {}, report


def place(
    module: nn.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    new_head: bool = False,
    resize: str = "",
    grid: tuple[int, int] | None = None,
    leave_out: Callable[[str], bool] = lambda name: False,
) -> tuple[dict[tuple[str, ...], np.ndarray], list[tuple[str, ...]], LoadingReport]:
    """`from_timm` without the weights that are to be drawn: (leaves by their path, paths of those, report); unrolled.

    What `leave_out` says of a name such as "patch_embed/proj/kernel" is not taken, and drawn anew as a new head is.
    """
    check("resize", resize, resize in adapt.RESIZE, f"one of {adapt.RESIZE}")
    report, flat, rest = LoadingReport(), {}, dict(tensors)
    wanted = timm_names.leaves(module)
    head = {name for name, leaf in wanted.items() if leave_out("/".join(leaf.path[1:]))}
    head |= set(adapt.head_leaves(module)) if new_head else set()
    for name, leaf in wanted.items():
        array = rest.pop(name, None)
        old = None if array is None else array.shape
        if name in head:
            report.reshaped.append((name, old, leaf.timm_shape, "initialised anew"))
            continue
        if array is None:
            report.missing.append(name)
            continue
        array = leaf.from_torch(np.asarray(array))
        fits = array.shape == leaf.shape
        if not fits and resize:
            array = adapt.resize_positions(module, leaf.path, array, leaf.shape, resize == "antialias", grid)
        if array.shape != leaf.shape:
            report.mismatched.append((name, old, leaf.timm_shape))
            continue
        flat[leaf.path] = _numbers(name, array, leaf.dtype)
        report.reshaped += [] if fits else [(name, old, array.shape, f"resized ({resize})")]
        report.loaded += [name] if fits else []
    for name in list(rest):
        if (new_head and name in adapt.head_leaves(module, 1)) or leave_out(timm_names.as_path(name)):
            report.reshaped.append((name, rest.pop(name).shape, None, "left out"))
    report.unexpected += list(rest)
    return flat, [leaf.path for name, leaf in wanted.items() if name in head], report


def _numbers(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in the model's type; integers, narrow floats that need a scale, NaN and infinities are no weights."""
    weights = array.dtype.itemsize >= 2 and jnp.issubdtype(array.dtype, jnp.floating)
    check(f"type of tensor {name!r}", str(array.dtype), weights, "float16, bfloat16, float32 or float64: not quantised")
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, and is counted
        array = array.astype(dtype)
    bad = array.size - int(np.isfinite(array.astype(np.float32)).sum())
    if bad:
        raise ValueError(f"tensor {name!r}: {bad} of its {array.size} values are NaN or infinite: damaged, or diverged")
    return array


def load(
    name: str,
    path: str | pathlib.Path,
    *,
    ema: bool = False,
    normalization: str = "",
    new_head: bool = False,
    resize: str = "",
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    **overrides: Any,
) -> tuple[nn.Module, Variables, LoadingReport]:
    """Reads a PyTorch checkpoint, of any dialect in `dialects.py`, into a model.

    Args:
      name: of the model, as for `models.build`.
      path: a .safetensors, .pt, .pth or .pth.tar file.
      ema: take the averaged weights of a training checkpoint.
      normalization: "" (what the file has; else the mean and std in `overrides`; else the named model's), "none", or
        "model" (the named model's, even against the file). Files of plain timm models do not say what they were
        trained with, so look at the report's note.
      new_head, resize, grid, seed: as for `from_timm`.
      **overrides: fields of the model.

    Returns:
      (module, variables, report).

    Raises:
      ValueError: in one line, whatever is not as it should be; nothing is loaded in part.
    """
    check("normalization", normalization, normalization in ("", "none", "model"), "'', 'none' or 'model'")
    state = state_dicts.find(path, ema)
    try:
        found = dialects.translate(state.tensors)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    given = {key: overrides[key] for key in ("mean", "std") if key in overrides}
    if normalization == "none":
        overrides, source = {**overrides, "mean": (), "std": ()}, "none, as asked for"
    elif found.normalization and normalization != "model":
        same = all(np.allclose(given[key], found.normalization[key], atol=1e-6) for key in given)
        check("mean and std", given, same, f"those in the file, {found.normalization}, or normalization='model'")
        overrides, source = {**overrides, **found.normalization}, "from the file"
    else:
        source = "as given" if given else "the named model's, the file has none"
    try:
        module = models.build(name, **overrides)
        variables, report = from_timm(module, found.tensors, new_head=new_head, resize=resize, grid=grid, seed=seed)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    pixels = f"mean {module.mean}, std {module.std}" if module.mean else "none, raw pixels in [0,1]"
    report.ignored, report.notes = found.ignored, [*state.notes, *found.notes, f"normalisation: {pixels} ({source})"]
    if report.problem():
        raise ValueError(f"{str(path)!r} does not fit {name}: {report.problem()}{_hint(module, report)}")
    alike = twins.names(name, overrides)
    if alike:
        report.notes.append(f"weights of {' and '.join(alike)} have the same shapes: the file does not say which it is")
    return module, variables, report


def _hint(module: nn.Module, report: LoadingReport) -> str:
    """What most probably mends it, where it is one thing."""
    heads = adapt.head_leaves(module, 1)
    names = [name for name, _, _ in report.mismatched]
    if report.missing or (report.unexpected and names):
        return ""
    if names and all(name in heads for name in names):
        classes = report.mismatched[0][1][0]
        return f"; the file has {classes} classes: pass num_classes={classes}, or new_head=True for a new head"
    if names and all(name.endswith(("pos_embed", "relative_position_bias_table")) for name in names):
        return "; for another image size pass resize='antialias' (as timm) or 'plain' (as the Light Recipe)"
    if report.unexpected and all(name in heads for name in report.unexpected):
        return "; pass new_head=True to leave out the file's head"
    return ""


def save_timm(path: str | pathlib.Path, module: nn.Module, variables: Variables) -> None:
    """Writes a .safetensors file with timm's names, which timm's model loads with `load_state_dict`."""
    import safetensors.numpy

    said = {"format": "pt", "mean": str(tuple(module.mean)), "std": str(tuple(module.std))}
    provenance.write_atomically(path, safetensors.numpy.save(to_timm(module, variables), metadata=said))

"""PyTorch weights in, PyTorch weights out: timm's state dict <-> a Flax variables tree, for every family and scan form.

```python
module, variables, report = torch_weights.load("xcit_small_12_p16_224", "xcit_small_12_p16_224.pth")
print(report)
torch_weights.save_timm("out.safetensors", module, variables)
torch_weights.save_converted("converted/", "xcit_small_12_p16_224", module, variables, report=report)
module, variables, description = torch_weights.load_converted("converted/")
```

Names and layouts follow one rule (`timm_names.py`), other spellings are translated first (`dialects.py`).

Loading is strict: every weight of the model must be in the file and every tensor of the file must be explained, or it
is an error. Changes of shape are made only when asked for, and reported.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import safetensors
import safetensors.numpy

from robust_vit import models
from robust_vit.errors import check
from robust_vit.models.parts import forms
from robust_vit.models.weights import adapt, dialects, pickle_tensors, timm_names
from robust_vit.models.weights.converted import load as load_converted  # noqa: F401  all of conversion under one name
from robust_vit.models.weights.converted import save as save_converted  # noqa: F401
from robust_vit.models.weights.loading_report import Report, some
from robust_vit.typing import Variables

CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")


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
) -> tuple[Variables, Report]:
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
      The variables in the module's form, and the report, to be
      judged by the caller (`report.problem()`).
    """
    check("resize", resize, resize in adapt.RESIZE, f"one of {adapt.RESIZE}")
    report, flat, rest = Report(), {}, dict(tensors)
    wanted = timm_names.leaves(module)
    head = adapt.head_leaves(module) if new_head else {}
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
        flat[leaf.path] = array.astype(leaf.dtype)
        report.reshaped += [] if fits else [(name, old, array.shape, f"resized ({resize})")]
        report.loaded += [name] if fits else []
    for name in list(rest):
        if new_head and name in adapt.head_leaves(module, 1):
            report.reshaped.append((name, rest.pop(name).shape, None, "left out"))
    report.unexpected += list(rest)
    if head and not report.problem():
        flat.update(adapt.initial_leaves(module, [wanted[name].path for name in head], seed))
    return forms.to_form_of(module, timm_names.unflatten(flat)) if not report.problem() else {}, report


# Files ------------------------------------------------------------------------------------------------------------


def read(path: str | pathlib.Path, ema: bool = False) -> dict[str, np.ndarray]:
    """Reads the state dict in a `.safetensors` or PyTorch file; no code in it is run (`pickle_tensors`).

    Args:
      path: the file.
      ema: take the averaged weights of a training checkpoint, instead of the raw ones.

    Returns:
      Names as in the file -> arrays.

    Raises:
      ValueError: no such file, not such a file, damaged, or without a state dict.
    """
    path = pathlib.Path(path)
    check("from", str(path), path.is_file(), "a .safetensors, .pt, .pth or .pth.tar file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{str(path)!r}: no safetensors file that can be read ({error})") from None
    found = _find_state_dict(pickle_tensors.read(path), AVERAGES if ema else CONTAINERS)
    if found is None:
        what = (
            f"averaged weights under any of {AVERAGES}" if ema else f"state dict, by itself or in any of {CONTAINERS}"
        )
        raise ValueError(f"{str(path)!r}: holds no {what}")
    odd = [name for name, value in found.items() if not isinstance(value, pickle_tensors.Tensor)]
    check("from", str(path), not odd, f"a state dict of tensors only, but it holds {some(list(map(str, odd)))}")
    try:
        return {str(name): tensor.numpy() for name, tensor in found.items()}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def _find_state_dict(value: Any, keys: tuple[str, ...], depth: int = 3) -> dict | None:
    """A mapping with tensors in it, at the top or under the known keys."""
    if not isinstance(value, Mapping) or not depth:
        return None
    if keys is not AVERAGES and any(isinstance(one, pickle_tensors.Tensor) for one in value.values()):
        return dict(value)
    for key in keys:
        if key in value:
            found = _find_state_dict(value[key], CONTAINERS, depth - 1)
            if found is not None:
                return found
    return None


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
) -> tuple[nn.Module, Variables, Report]:
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
    found = dialects.translate(read(path, ema))
    given = {key: overrides[key] for key in ("mean", "std") if key in overrides}
    if normalization == "none":
        overrides, source = {**overrides, "mean": (), "std": ()}, "none, as asked for"
    elif found.normalization and normalization != "model":
        same = all(np.allclose(given[key], found.normalization[key], atol=1e-6) for key in given)
        check("mean and std", given, same, f"those in the file, {found.normalization}, or normalization='model'")
        overrides, source = {**overrides, **found.normalization}, "from the file"
    else:
        source = "as given" if given else "the named model's, the file has none"
    module = models.build(name, **overrides)
    variables, report = from_timm(module, found.tensors, new_head=new_head, resize=resize, grid=grid, seed=seed)
    pixels = f"mean {module.mean}, std {module.std}" if module.mean else "none, raw pixels in [0,1]"
    report.ignored, report.notes = found.ignored, [*found.notes, f"normalisation: {pixels} ({source})"]
    if report.problem():
        raise ValueError(f"{str(path)!r} does not fit {name}: {report.problem()}{_hint(module, report)}")
    return module, variables, report


def _hint(module: nn.Module, report: Report) -> str:
    """What most probably mends it, where it is one thing."""
    heads = adapt.head_leaves(module, 1)
    names = [name for name, _, _ in report.mismatched]
    if report.missing or (report.unexpected and names):
        return ""
    if names and all(name in heads for name in names):
        classes = report.mismatched[0][1][0]
        return f"; the file has {classes} classes: pass num_classes={classes}, or new_head for a new head"
    if names and all(name.endswith(("pos_embed", "relative_position_bias_table")) for name in names):
        return "; for another image size pass resize='antialias' (as timm) or 'plain' (as the Light Recipe)"
    if report.unexpected and all(name in heads for name in report.unexpected):
        return "; pass new_head to leave out the file's head"
    return ""


def save_timm(path: str | pathlib.Path, module: nn.Module, variables: Variables) -> None:
    """Writes a .safetensors file with timm's names, which timm's model loads with `load_state_dict`."""
    said = {"format": "pt", "mean": str(tuple(module.mean)), "std": str(tuple(module.std))}
    safetensors.numpy.save_file(to_timm(module, variables), path, metadata=said)

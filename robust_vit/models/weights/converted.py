"""Converted weights on disk: a folder that says which model they belong to, and where they are from.

model.json             name and every field of the model (mean and std among them), the source file and its SHA-256,
                       what was loaded, reshaped and left out, the SHA-256 of the weights
weights.safetensors    the variables, by their Flax path: params/blocks_0/attn/qkv/kernel, ...; blocks unrolled
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import robust_vit
from robust_vit import models, provenance
from robust_vit.errors import check
from robust_vit.models.parts import forms
from robust_vit.models.weights import timm_names
from robust_vit.models.weights.loading_report import LoadingReport
from robust_vit.pixels import as_float
from robust_vit.typing import Variables

DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
TOLERANCE = 1e-4  # of the largest expected logit, for `verify`: float32 sums in another order differ by about 1e-6


def save(
    directory: str | pathlib.Path,
    name: str,
    module: nn.Module,
    variables: Variables,
    *,
    report: LoadingReport | None = None,
    source: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model with its weights.

    Args:
      directory: made if it is not there; what it holds of an earlier conversion is replaced.
      name: of the model, as for `models.build`.
      module, variables: the model, in any scan form.
      report: of the conversion.
      source: what the weights are from, for the record ({"file": ..., "sha256": ...}).

    Returns:
      The description, as written to `model.json`.
    """
    import safetensors.numpy

    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat = timm_names.flatten(forms.to_unrolled(module, variables))
    arrays = {"/".join(path): np.ascontiguousarray(leaf) for path, leaf in flat.items()}
    content = safetensors.numpy.save(arrays)
    # one file, then the other: an interruption between them leaves a description whose digest the weights do not have
    provenance.write_atomically(directory / WEIGHTS, content)
    description = {
        "model": name,
        "fields": _plain(module),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "source": source,
        "report": None if report is None else dataclasses.asdict(report),
        "robust_vit": robust_vit.__version__,
    }
    provenance.write_json(directory / DESCRIPTION, description)
    return description


def load(directory: str | pathlib.Path, **overrides: Any) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """Reads what `save` wrote.

    Args:
      directory: the folder.
      **overrides: fields that do not change shapes (`dtype`, `scan`, `remat`, `attention`, `drop_path`, ...).

    Returns:
      (module, variables, description).

    Raises:
      ValueError: no such folder, damaged weights, or overrides that the weights do not fit.
    """
    import safetensors.numpy

    directory = pathlib.Path(directory)
    path = directory / DESCRIPTION
    check("directory", str(directory), path.is_file(), f"a folder with converted weights; it has no {DESCRIPTION}")
    try:
        description = json.loads(path.read_text())
        name, fields, expected = (description[key] for key in ("model", "fields", "weights_sha256"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r}: damaged ({error})") from None
    module = models.build(name, **{**_fields(fields), **overrides})
    weights = directory / WEIGHTS
    intact = weights.is_file() and sha256(weights) == expected
    check("weights", str(weights), intact, f"the file that {DESCRIPTION} describes (SHA-256 {expected[:12]}...)")
    arrays = safetensors.numpy.load_file(weights)
    flat = {}
    for leaf in timm_names.leaves(module).values():
        array = arrays.pop("/".join(leaf.path), None)
        fits = array is not None and array.shape == leaf.shape
        check("/".join(leaf.path), None if array is None else array.shape, fits, f"{leaf.shape}; see the overrides")
        flat[leaf.path] = array.astype(leaf.dtype)
    check("weights", list(arrays)[:3], not arrays, "those of the model, and no more; see the overrides")
    return module, forms.to_form_of(module, timm_names.unflatten(flat)), description


def verify(module: nn.Module, variables: Variables, path: str | pathlib.Path, tolerance: float = TOLERANCE) -> float:
    """Compares the model's logits with expected ones.

    Args:
      module, variables: the model.
      path: a .npz file with `images` [B,H,W,C] (or PyTorch's [B,C,H,W]), floats in [0,1] or bytes in 0..255, before any
        normalisation; and `logits` [B,K].
      tolerance: allowed difference, as a fraction of the largest absolute expected logit.

    Returns:
      The largest difference found, in the same unit.

    Raises:
      ValueError: the logits differ, or the file does not hold such arrays.
    """
    images, expected = _expected(path, models.image_shape(module))
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(module.apply)(variables, images), np.float64)
    check("logits", expected.shape, expected.shape == logits.shape, f"of shape {logits.shape}, in {str(path)!r}")
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:  # also catches NaN
        agree = (logits.argmax(-1) == expected.argmax(-1)).mean()
        pixels = f"mean {module.mean}, std {module.std}" if module.mean else "none"
        raise ValueError(
            f"{str(path)!r}: logits differ by {difference:.1e} of the largest, more than {tolerance:.0e} "
            f"({agree:.0%} of the predictions agree); the normalisation of the model is: {pixels}"
        )
    return difference


def sha256(path: str | pathlib.Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected(path: str | pathlib.Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            images, expected = file["images"], file["logits"].astype(np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"verify = {str(path)!r}: must be a .npz file with images and logits ({error})") from None
    if images.ndim == 4 and images.shape[1:] != shape and images.shape[1:] == (shape[2], *shape[:2]):
        images = images.transpose(0, 2, 3, 1)
    check("images", images.shape, images.ndim == 4 and images.shape[1:] == shape, f"of shape (B, {shape})")
    images = as_float(images)
    inside = images.size and 0 <= images.min() and images.max() <= 1
    check("images", [float(images.min()), float(images.max())], bool(inside), "pixels in [0,1], not normalised")
    return images, expected


def _plain(module: nn.Module) -> dict[str, Any]:
    """The module's fields as JSON."""
    names = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    values = {name: getattr(module, name) for name in names}
    return {name: np.dtype(value).name if name.endswith("dtype") else value for name, value in values.items()}


def _fields(plain: dict[str, Any]) -> dict[str, Any]:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {name: jax.numpy.dtype(value) if name.endswith("dtype") else tuples(value) for name, value in plain.items()}

"""The state dict in a file: what it is, by content and not by name, and which mapping in it are the weights."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robust_vit.errors import check
from robust_vit.models.weights import pickle_tensors
from robust_vit.models.weights.loading_report import some

CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network")  # in this order
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
WEIGHTS_FILE = "a .safetensors, .pt, .pth or .pth.tar file"

# First bytes of what is mistaken for weights: (prefix, what it is, and what to do)
FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer and not the weights: run git lfs pull where it is from"),
    (b"<!doctype html", "a web page and not the weights: the download went wrong"),
    (b"<html", "a web page and not the weights: the download went wrong"),
    (b"<?xml", "an XML page and not the weights: the download went wrong"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x89hdf", "an HDF5 file"),
    (b"\x93numpy", "a NumPy array"),
)


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Names as in the file -> arrays; `notes` say, in words, what was chosen and what was passed over."""

    tensors: dict[str, np.ndarray]
    notes: list[str]


def read(path: str | pathlib.Path, ema: bool = False) -> dict[str, np.ndarray]:
    """Reads the state dict in a `.safetensors` or PyTorch file; no code in it is run (`pickle_tensors`).

    Args:
      path: the file.
      ema: take the averaged weights of a training checkpoint, instead of the raw ones.

    Returns:
      Names as in the file -> arrays.

    Raises:
      ValueError: in one line: no such file, not such a file, damaged, or without a state dict.
    """
    return find(path, ema).tensors


def find(path: str | pathlib.Path, ema: bool = False) -> StateDict:
    """`read`, with what there is to say of it."""
    path = pathlib.Path(path)
    check("from", str(path), path.exists(), f"{WEIGHTS_FILE}; there is no such file")
    check("from", str(path), path.is_file(), f"{WEIGHTS_FILE}; this is a folder")
    with path.open("rb") as file:
        head = file.read(32)
    of_torch = head.startswith((b"PK", b"\x80"))
    if not of_torch and (head[8:9] == b"{" or path.suffix == ".safetensors"):
        check("ema", ema, not ema, "left out: a safetensors file holds one state dict")
        notes = [] if path.suffix == ".safetensors" else ["a safetensors file, whatever its name"]
        return StateDict(_safetensors(path, head), notes)
    if not of_torch:
        raise ValueError(f"{str(path)!r}: is no file that torch.save wrote{_what(head)}")
    found, notes = _choose(path, pickle_tensors.read(path), ema)
    odd = [name for name, value in found.items() if not isinstance(value, pickle_tensors.Tensor)]
    check("from", str(path), not odd, f"a state dict of tensors only, but it holds {some(list(map(str, odd)))}")
    return StateDict({str(name): _array(path, str(name), tensor) for name, tensor in found.items()}, notes)


def _what(head: bytes) -> str:
    """`, but ...` where the first bytes tell what the file is instead."""
    if not head:
        return ", but empty"
    start = head.lower().lstrip()
    return next((f", but {what}" for prefix, what in FOREIGN if start.startswith(prefix)), "")


def _safetensors(path: pathlib.Path, head: bytes) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # a damaged header can raise anything; types that NumPy does not have, a KeyError
        why = _what(head) or f" that can be read ({' '.join(str(error).split())})"
        raise ValueError(f"{str(path)!r}: no safetensors file{why}") from None


def _array(path: pathlib.Path, name: str, tensor: pickle_tensors.Tensor) -> np.ndarray:
    try:
        return tensor.numpy()
    except Exception as error:  # whatever a damaged archive makes of its storages: CRC, compression, missing entries
        raise ValueError(f"{str(path)!r}: tensor {name!r} is damaged ({' '.join(str(error).split())})") from None


def _choose(path: pathlib.Path, content: Any, ema: bool) -> tuple[dict, list[str]]:
    """The one mapping that is the state dict, and what was passed over beside it."""
    candidates = dict(_candidates(content))
    averages = {place: found for place, found in candidates.items() if set(place) & set(AVERAGES)}
    raw = {place: found for place, found in candidates.items() if place not in averages}
    if ema:
        check("from", str(path), bool(averages), f"a file with averaged weights, under any of {AVERAGES}")
    elif not raw and averages:
        held = ".".join(next(iter(averages)))
        raise ValueError(f"{str(path)!r}: holds averaged weights only, under {held!r}: pass ema=True")
    elif not raw:
        raise ValueError(f"{str(path)!r}: holds no state dict, by itself or in any of {CONTAINERS}")
    chosen = averages if ema else raw
    best = min(_rank(*item) for item in chosen.items())
    places = [place for place, found in chosen.items() if _rank(place, found) == best]
    held = " and ".join(".".join(place) for place in places)
    check("from", str(path), len(places) == 1, f"a file with one state dict, or one in {CONTAINERS}; it holds {held}")
    (place,) = places
    beside = [name for i in range(len(place)) for name in _tensors(content, place[:i])]
    return chosen[place], [f"left out {some(beside)}: beside the state dict {'.'.join(place)!r}"] if beside else []


def _rank(place: tuple[str, ...], found: dict) -> tuple[int, ...]:
    """Known containers come first, in their order; then the file itself, then mappings of unknown names."""
    known = (*CONTAINERS, *AVERAGES)
    pure = all(isinstance(one, pickle_tensors.Tensor) for one in found.values())
    order = tuple(known.index(key) for key in place if key in known)
    unknown = len(order) < len(place)
    return (*order, len(known) + (unknown + 2 * (not pure)))


def _candidates(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every mapping from names to tensors, with its place; the state of an optimiser has numbers for names."""
    if not isinstance(value, Mapping) or len(place) > 3:
        return
    if any(isinstance(one, pickle_tensors.Tensor) for one in value.values()) and all(isinstance(k, str) for k in value):
        yield place, dict(value)
    for key, one in value.items():
        if isinstance(key, str) and "optim" not in key:
            yield from _candidates(one, (*place, key))


def _tensors(value: Any, place: tuple[str, ...]) -> list[str]:
    """Names of the tensors that stand directly in the mapping at a place."""
    for key in place:
        value = value[key]
    return [".".join((*place, str(key))) for key, one in value.items() if isinstance(one, pickle_tensors.Tensor)]

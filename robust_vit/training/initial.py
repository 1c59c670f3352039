"""What training begins from, where that is not chance: fine-tuning from a run, converted weights or a PyTorch file.

Every tensor is accounted for, or nothing starts: taken as it is, resized to the new grid of tokens, left out with the
old head, or drawn anew with the new one. What happened to each goes to `initial.json`, with a digest of what was taken:
the weights that a run began with are part of what it is. A run that is resumed never looks at them again.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from robust_vit import parallel, provenance
from robust_vit.config import ConfigDict
from robust_vit.errors import check, nearest
from robust_vit.models.families import masked_autoencoder
from robust_vit.models.parts import forms
from robust_vit.models.weights import adapt, converted, dialects, state_dicts, timm_names, torch_weights
from robust_vit.models.weights.loading_report import LoadingReport
from robust_vit.training import checkpoint, groups
from robust_vit.typing import Variables

FILE = "initial.json"
# Fields in which the model may differ from the one that the weights are from, and nobody need be told
FREE = {"image_size", "num_classes", "drop_path", "layer_scale", "initializer", "attention", "remat", "scan"}
FREE |= {"dtype", "param_dtype", "parent", "name"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights under timm's names, and what there is to say of where they are from."""

    tensors: Mapping[str, np.ndarray]
    described: dict[str, Any]
    module: nn.Module | None = None  # None where a file does not say which model it holds
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Initial:
    """Weights that fit the model of a run, but for those that are to be drawn; and how they came to fit.

    Fields:
      variables: a part of the model's variables, in its form.
      content: of initial.json.
      report: for people.
    """

    variables: Variables
    content: dict[str, Any]
    report: LoadingReport

    def __str__(self) -> str:
        return f"beginning from {self.content['weights']}: {self.report}"


def load(section: ConfigDict, module: nn.Module) -> Initial | None:
    """Reads the weights that a section describes and fits them to a model; nothing is compiled.

    Args:
      section: `config.initial`.
      module: the model that is to be trained.

    Returns:
      The weights; None where training begins from chance.

    Raises:
      ValueError: in one line, what does not fit and was not asked for.
    """
    if not section.weights:
        return None
    try:
        source = _without_decoder(read(section), module)
        new_head = _new_head(module, source.tensors, section.head)
        flat, _, report = torch_weights.place(
            module,
            source.tensors,
            new_head=new_head,
            resize=section.resize,
            grid=getattr(source.module, "grid", None),
            leave_out=_left_out(module, source.tensors, tuple(section.leave_out)),
        )
    except ValueError as error:
        raise ValueError(f"initial.weights = {section.weights!r}: {error}") from None
    if report.problem():
        raise ValueError(
            f"initial.weights = {section.weights!r}: do not fit {type(module).__name__}:"
            f" {report.problem()}{_hint(module, report)}"
        )
    report.notes += [*source.notes, *_differences(source.module, module)]
    content = {"weights": section.weights, **source.described, "sha256": _digest(flat), **_told(module, flat, report)}
    return Initial(forms.to_form_of(module, timm_names.unflatten(flat)), content, report)


def read(section: ConfigDict) -> Source:
    """Reads a run folder, a folder of converted weights, or a file of PyTorch weights.

    Raises:
      ValueError: if there is none, or what is asked of it is not in it.
    """
    path = pathlib.Path(section.weights)
    if path.is_file():
        return _file(path, section)
    if (path / "config.json").is_file():
        _, module, variables, step = checkpoint.load(path, section.checkpoint, section.average)
        described = {"kind": "run", "step": int(step), "average": section.average or "as selected"}
        return Source(_tensors(module, variables), described, module)
    for field in ("checkpoint", "average"):
        usual = "best" if field == "checkpoint" else ""
        check(f"initial.{field}", section[field], section[field] == usual, f"left at {usual!r}: this is no run folder")
    module, variables, description = converted.load(path)
    described = {"kind": "converted", "weights_sha256": description["weights_sha256"]}
    return Source(_tensors(module, variables), described, module)


def _without_decoder(source: Source, module: nn.Module) -> Source:
    """What a masked autoencoder learned, without what only painted, unless the model is one itself."""
    left = [name for name in source.tensors if name.startswith(masked_autoencoder.DECODER)]
    pretrained = isinstance(source.module, masked_autoencoder.MaskedAutoencoder)
    if not pretrained or isinstance(module, masked_autoencoder.MaskedAutoencoder):
        return source
    tensors = {name: array for name, array in source.tensors.items() if name not in left}
    note = f"the decoder stays behind: {len(left)} tensors"
    return dataclasses.replace(source, tensors=tensors, notes=(*source.notes, note))


def _file(path: pathlib.Path, section: ConfigDict) -> Source:
    check("initial.checkpoint", section.checkpoint, section.checkpoint == "best", "left at 'best': this is a file")
    check("initial.average", section.average, section.average in ("", "ema"), "'' or 'ema', of a file")
    state = state_dicts.find(path, section.average == "ema")
    found = dialects.translate(state.tensors)
    pixels = [f"normalisation in the file: {found.normalization}"] if found.normalization else []
    described = {"kind": "file", "file_sha256": converted.sha256(path)}
    return Source(found.tensors, described, None, (*state.notes, *found.notes, *pixels))


def _tensors(module: nn.Module, variables: Variables) -> dict[str, np.ndarray]:
    found = torch_weights.to_timm(module, variables)
    return {name: array for name, array in found.items() if not name.endswith("num_batches_tracked")}


def _new_head(module: nn.Module, tensors: Mapping[str, np.ndarray], head: str) -> bool:
    """Whether the head is drawn anew: "auto" where the one that is there is none, or for other classes."""
    if head != "auto":
        return head == "new"
    leaves = timm_names.leaves(module)

    def fits(name: str) -> bool:
        return name in tensors and leaves[name].from_torch(tensors[name]).shape == leaves[name].shape

    return not all(map(fits, adapt.head_leaves(module)))


def _left_out(module: nn.Module, tensors: Mapping[str, np.ndarray], patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is of what the weights are not asked for.

    Raises:
      ValueError: for a pattern that names nothing, there or here.
    """
    here = ["/".join(leaf.path[1:]) for leaf in timm_names.leaves(module).values()]
    known = [*here, *map(timm_names.as_path, tensors)]
    for pattern in patterns:
        if not any(groups.means(name, [pattern]) for name in known):
            raise ValueError(f"initial.leave_out = {pattern!r}: names no parameter{nearest(pattern, known)}")
    return lambda name: groups.means(name, patterns)


def _hint(module: nn.Module, report: LoadingReport) -> str:
    """What most probably mends it, where it is one thing."""
    heads, names = adapt.head_leaves(module), [name for name, _, _ in report.mismatched]
    if names and all(name in heads for name in names) and not report.unexpected:
        return "; for other classes set initial.head = 'new'"
    if names and all(name.endswith(("pos_embed", "relative_position_bias_table")) for name in names):
        return "; for another image size set initial.resize = 'plain' (as DeiT) or 'antialias' (as timm)"
    return ""


def _differences(there: nn.Module | None, here: nn.Module) -> list[str]:
    """Fields of the model that are others than where its weights are from, for people to judge."""
    if there is None:
        return []
    if type(there) is not type(here):
        return [f"from a {type(there).__name__} to a {type(here).__name__}"]
    names = [field.name for field in dataclasses.fields(here) if field.name not in FREE]
    pairs = [(name, getattr(there, name), getattr(here, name)) for name in names]
    return [f"model.{name}: {old!r} there, {new!r} here" for name, old, new in pairs if old != new]


def _told(module: nn.Module, flat: Mapping[tuple[str, ...], np.ndarray], report: LoadingReport) -> dict[str, Any]:
    """What became of every tensor, with its shape."""
    leaves = timm_names.leaves(module)
    taken = {name: list(leaves[name].timm_shape) for name in report.loaded}
    told: dict[str, Any] = {"taken": taken, "resized": {}, "new": {}, "left_out": {}, "notes": report.notes}
    for name, old, new, _ in report.reshaped:
        if new is None:
            told["left_out"][name] = list(old)
        elif name in leaves and leaves[name].path in flat:
            told["resized"][name] = {"there": list(old), "here": list(new)}
        else:
            told["new"][name] = list(new)
            told["left_out"] |= {} if old is None else {name: list(old)}
    return told


def _digest(flat: Mapping[tuple[str, ...], np.ndarray]) -> str:
    """Of all that was taken, with its names."""
    digest = hashlib.sha256()
    for path in sorted(flat):
        digest.update("/".join(path).encode())
        digest.update(np.ascontiguousarray(flat[path]).tobytes())
    return digest.hexdigest()


def claim(workdir: pathlib.Path, initial: Initial | None) -> None:
    """Writes initial.json, or holds the weights against those that the run began with.

    Raises:
      ValueError: if the run in this folder began with others.
    """
    if initial is None:
        return
    path, now = workdir / FILE, initial.content
    known = provenance.read_json(path) if path.is_file() else now
    if known.get("sha256") != now["sha256"]:
        raise ValueError(
            f"initial.weights = {now['weights']!r}: are not those that the run in {str(workdir)!r} began with;"
            " restore them or choose another workdir"
        )
    if parallel.is_main():
        provenance.write_json(path, now)

"""`load`: a `Classifier` from whatever holds one.

load("runs/digits")                                               a run folder
load("weights/xcit", threat="linf-4/255")                         converted weights (robust_vit.convert)
load("checkpoint.pth.tar", model="xcit_small_12_p16_224")         a PyTorch checkpoint; no code in it is run
"""

import os
import pathlib
from typing import Any

from robust_vit import models
from robust_vit.classifier import Classifier
from robust_vit.errors import check
from robust_vit.threat import Threat

KINDS = "a run folder, a folder of converted weights, or a PyTorch or .safetensors file"


def load(
    path: str | pathlib.Path,
    *,
    model: str | None = None,
    checkpoint: str | int = "best",
    weights: str = "",
    threat: Threat | str | None = None,
    **overrides: Any,
) -> Classifier:
    """Reads a classifier.

    Args:
      path: a folder that training wrote, a folder of converted weights, or a file of PyTorch weights.
      model: name of the model that a file belongs to (`models.names()`); folders know theirs.
      checkpoint: of a run: "best" by validation, "latest", or a step.
      weights: of a run: "raw" or "ema"; by default what it selects its best checkpoint by.
      threat: what `attack` and `evaluate` take by default; a run's own by default.
      **overrides: of a file: as for `models.weights.torch_weights.load` (`num_classes=10`, `normalization="none"`); of
        converted weights: fields of the model that change no shapes.

    Raises:
      ValueError: in one line, what is missing or does not fit.
    """
    check("path", path, isinstance(path, str | os.PathLike), KINDS)
    path = pathlib.Path(path)
    check("path", str(path), path.exists(), f"{KINDS}; there is nothing of this name")
    if path.is_file():
        return _from_file(path, model, threat, overrides)
    check("model", model, model is None, f"left out: {str(path)!r} is a folder, and says which model it holds")
    if (path / "config.json").is_file():
        check("overrides", overrides, not overrides, f"left out: {str(path)!r} is a run, and says what its model is")
        return _from_run(path, checkpoint, weights, threat)
    known = (path / "model.json").is_file()
    check("path", str(path), known, f"{KINDS}; this folder holds neither config.json nor model.json")
    return _from_converted(path, threat, overrides)


def _from_run(path: pathlib.Path, step: str | int, weights: str, threat: Threat | str | None) -> Classifier:
    from robust_vit.training import checkpoint

    config, module, variables, found = checkpoint.load(path, step, weights)
    own = Threat(config.attack.norm, config.attack.epsilon)
    name = _name(config.model.name, module)
    logits_fn = models.logits_fn(module, variables)
    return Classifier(logits_fn, threat=own if threat is None else threat, name=name, step=int(found), config=config)


def _from_converted(path: pathlib.Path, threat: Threat | str | None, overrides: dict[str, Any]) -> Classifier:
    from robust_vit.models.weights import converted

    module, variables, description = converted.load(path, **overrides)
    return Classifier(models.logits_fn(module, variables), threat=threat, name=_name(description["model"], module))


def _from_file(
    path: pathlib.Path, model: str | None, threat: Threat | str | None, overrides: dict[str, Any]
) -> Classifier:
    from robust_vit.models.weights import torch_weights

    check("model", model, model is not None, "given with a file of weights, such as model='xcit_small_12_p16_224'")
    module, variables, _ = torch_weights.load(model, path, **overrides)
    return Classifier(models.logits_fn(module, variables), threat=threat, name=_name(model, module))


def _name(name: str, module: Any) -> str:
    """The model's name; of a bare family its class, which says the same with its capitals."""
    family = type(module).__name__
    return family if name.lower() == family.lower() else name

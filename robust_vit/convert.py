"""Convert weights from PyTorch, and back to timm's names.

    python -m robust_vit.convert --model=xcit_small_12_p16_224 --from=FILE.pth --to=DIR

reads .safetensors, .pt, .pth or .pth.tar (timm's names or those of the released code, with or without wrappers) into a
folder that `python -m robust_vit.evaluate --weights_dir=DIR` and `robust_vit.load("DIR")` read. No code in the file is
run. Every tensor is accounted for, or nothing is written.

    python -m robust_vit.convert --model=vit_tiny_patch16_224 --from=FILE.pth --to=DIR --image_size=32 \\
        --option=patch_size=4 --num_classes=10 --verify=expected.npz

    python -m robust_vit.convert --from=DIR --to=FILE.safetensors

The last goes back to timm's names, from such a folder or from a run folder.
"""

import ast
import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from absl import flags

from robust_vit import commands, models
from robust_vit.errors import check, lookup
from robust_vit.models.weights import adapt, converted, state_dicts, torch_weights
from robust_vit.models.weights.loading_report import LoadingReport
from robust_vit.training import checkpoint
from robust_vit.typing import Variables

# Flags of this command alone: the global FLAGS would clash with those of other commands in one process.
_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "Name of the model; see python -m robust_vit.models.", flag_values=_FLAGS)
_FROM = flags.DEFINE_string(
    "from", None, "A PyTorch file, a folder of converted weights, or a run folder.", flag_values=_FLAGS
)
_TO = flags.DEFINE_string("to", None, "A folder to write, or FILE.safetensors for timm's names.", flag_values=_FLAGS)
_IMAGE_SIZE = flags.DEFINE_string("image_size", None, "Pixels: 32, or 32x48 (height x width).", flag_values=_FLAGS)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Classes of the model; 0 for no head.", flag_values=_FLAGS)
_OPTION = flags.DEFINE_multi_string(
    "option", [], "field=value of the model, such as patch_size=4 or mean=(0.5,0.5,0.5).", flag_values=_FLAGS
)
_NORMALIZATION = flags.DEFINE_string(
    "normalization",
    "",
    "Pixels are normalised as the file says, else as the named model; 'none' or 'model' decide otherwise.",
    flag_values=_FLAGS,
)
_NEW_HEAD = flags.DEFINE_bool(
    "new_head", False, "Leave out the file's classifier and initialise the model's.", flag_values=_FLAGS
)
_RESIZE = flags.DEFINE_string(
    "resize",
    "",
    "Resize positions and relative biases: antialias (bicubic, as timm) or plain (without antialiasing).",
    flag_values=_FLAGS,
)
_GRID = flags.DEFINE_string(
    "grid",
    None,
    "With --resize: tokens that the file's positions are for, as 14x14; a square by default.",
    flag_values=_FLAGS,
)
_EMA = flags.DEFINE_bool("ema", False, "Take the averaged weights of a training checkpoint.", flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of a new head.", flag_values=_FLAGS)
_VERIFY = flags.DEFINE_string(
    "verify",
    None,
    f"A .npz file of images and logits that must come out, within {converted.TOLERANCE:.0e} of the largest.",
    flag_values=_FLAGS,
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Of a run folder: best, latest or a step.", flag_values=_FLAGS)
_WEIGHTS = flags.DEFINE_string("weights", "", "Of a run folder: raw or ema.", flag_values=_FLAGS)


TIMM_FILE = ".safetensors"
OTHER_FILES = (
    ".pth",
    ".pt",
    ".tar",
    ".bin",
    ".ckpt",
    ".npz",
    ".npy",
    ".pkl",
    ".h5",
    ".onnx",
    ".msgpack",
)  # not written


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model from any of the sources."""

    name: str
    module: nn.Module
    variables: Variables
    source: dict[str, Any]
    report: LoadingReport | None = None


def from_file() -> Loaded:
    """Reads the PyTorch file that the flags name."""
    check("model", _MODEL.value, _MODEL.value is not None, "given: the name of the model that the file belongs to")
    keywords = dict(
        ema=_EMA.value,
        normalization=_NORMALIZATION.value,
        new_head=_NEW_HEAD.value,
        resize=_RESIZE.value,
        grid=None if _GRID.value is None else sides("grid", _GRID.value),
        seed=_SEED.value,
    )
    path = _FROM.value
    module, variables, report = torch_weights.load(_MODEL.value, path, **keywords, **model_overrides())
    source = {"file": pathlib.Path(path).name, "sha256": converted.sha256(path), "ema": _EMA.value}
    return Loaded(_MODEL.value, module, variables, source, report)


def from_folder() -> Loaded:
    """Reads the folder of converted weights or the run folder that the flags name."""
    folder = pathlib.Path(_FROM.value)
    check("model", _MODEL.value, _MODEL.value is None, "left out: the folder says which model it holds")
    given = [
        flag.name for flag in (_IMAGE_SIZE, _NUM_CLASSES, _OPTION, _NORMALIZATION, _NEW_HEAD, _RESIZE) if flag.value
    ]
    check("from", str(folder), not given, f"a PyTorch file with --{', --'.join(given)}")
    if (folder / converted.DESCRIPTION).is_file():
        module, variables, description = converted.load(folder)
        return Loaded(description["model"], module, variables, description["source"] or {})
    config, module, variables, step = checkpoint.load(folder, _CHECKPOINT.value, _WEIGHTS.value)
    source = {"run": folder.name, "step": int(step), "weights": _WEIGHTS.value or "as selected"}
    return Loaded(config.model.name, module, variables, source)


def model_overrides() -> dict[str, Any]:
    """The fields of the model that the flags give.

    Raises:
      ValueError: an unknown field, or a value that is none.
    """
    factory = lookup("model", _MODEL.value, models.MODELS)
    fields = [field.name for field in dataclasses.fields(factory.func) if field.name not in ("parent", "name")]
    found: dict[str, Any] = {}
    for text in _OPTION.value:
        name, _, value = text.partition("=")
        lookup(f"option of {_MODEL.value}", name, dict.fromkeys(fields))
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    if _IMAGE_SIZE.value is not None:
        height, width = sides("image_size", _IMAGE_SIZE.value)
        found["image_size"] = height if height == width else (height, width)
    if _NUM_CLASSES.value is not None:
        found["num_classes"] = _NUM_CLASSES.value
    return found


def sides(flag: str, text: str) -> tuple[int, int]:
    """Reads `32` or `32x48`.

    Raises:
      ValueError: if it is neither.
    """
    parts = text.split("x")
    right = len(parts) in (1, 2) and all(part.isdecimal() and int(part) > 0 for part in parts)
    check(flag, text, right, "a positive integer or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def convert() -> Loaded:
    """Does what the flags ask for: reads, reports, verifies, writes."""
    for flag in (_FROM, _TO):
        check(flag.name, flag.value, bool(flag.value), "given: a file or a folder")
    check(
        "from",
        _FROM.value,
        pathlib.Path(_FROM.value).exists(),
        f"{state_dicts.WEIGHTS_FILE} or a folder; there is no such file",
    )
    lookup("resize", _RESIZE.value, dict.fromkeys(adapt.RESIZE))
    to = pathlib.Path(_TO.value)
    file = to.suffix == TIMM_FILE
    fits = not to.is_dir() if file else to.is_dir() or not (to.exists() or to.suffix in OTHER_FILES)
    check("to", str(to), fits, f"a folder, or a file named {TIMM_FILE}")
    loaded = from_folder() if pathlib.Path(_FROM.value).is_dir() else from_file()
    if loaded.report is not None:
        print(loaded.report)
    if _VERIFY.value is not None:
        difference = converted.verify(loaded.module, loaded.variables, _VERIFY.value)
        print(f"verified: logits of {_VERIFY.value} within {difference:.1e} of the largest")
        loaded.source["verified"] = {"file": pathlib.Path(_VERIFY.value).name, "difference": difference}
    if file:
        torch_weights.save_timm(to, loaded.module, loaded.variables)
    else:
        converted.save(to, loaded.name, loaded.module, loaded.variables, report=loaded.report, source=loaded.source)
    print(f"written to {to}")
    return loaded


_OWN = "ema|normalization|new_head|resize|grid|num_classes|image_size"  # keywords that are flags of the same name


def as_flags(text: str) -> str:
    """What the library says of its keywords, in the spelling of the command: `resize='plain'` -> `--resize=plain`."""
    text = re.sub(rf"\b({_OWN})=True\b", r"--\1", text)
    return re.sub(rf"(?<![-\w])({_OWN})=(['\"]?)([\w.]+)\2", r"--\1=\3", text)


def work(arguments: Sequence[str]) -> None:
    """Runs the command.

    Raises:
      ValueError: whatever the user can mend, in one line.
    """
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    commands.parse(_FLAGS, arguments)
    try:
        convert()
    except ValueError as error:
        raise ValueError(as_flags(str(error))) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error that the user can mend ends with one line."""
    commands.run(work, arguments)


if __name__ == "__main__":
    main(sys.argv)

"""Pictures that explain a run: robust-vit explain --workdir=runs/digits --workdir=runs/plain --what=perturbations

Draws what a run does under attack into `explain/` of the first run's folder, with the numbers of every picture beside
it in a file. Several runs are drawn side by side, on the same images. What there is to draw:

{kinds}

    robust-vit explain --workdir=runs/digits --what=attention,filmstrip
    robust-vit explain --workdir=runs/digits --workdir=runs/plain --what=semantics --out=pictures
    robust-vit explain --compare runs/digits runs/plain                  # the two on one page

Without --what everything is drawn that the runs have. Pictures show the first --examples images of the split; figures
with intervals are of all of them, or of --limit.
"""

import dataclasses
import functools
import importlib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from robust_vit import commands, loading, provenance
from robust_vit.analysis import report
from robust_vit.classifier import Classifier
from robust_vit.errors import check, lookup
from robust_vit.threat import Threat
from robust_vit.typing import Array


class Kind(NamedTuple):
    """Something that can be drawn.

    Attributes:
      module: of `robust_vit.analysis`; its `explain(subjects, out)` writes pictures and their numbers into the folder
        `out` and returns the files. What a run does not have is a ValueError of one line.
      what: it draws, for --help.
      attacks: whether it runs the model: then every subject has a checkpoint, and all have the same data.
    """

    module: str
    what: str
    attacks: bool = True


KINDS: dict[str, Kind] = {
    "perturbations": Kind("perturbations", "clean, perturbation and adversarial images with predictions; spectra"),
    "attention": Kind("attention_plots", "attention by layer and head, rollout, the windows kept, the shift by attack"),
    "positions": Kind("positions", "similarity of position embeddings; patches shuffled, with and without them"),
    "semantics": Kind("semantics_plots", "gradients added up, images of classes, what perturbations alone say"),
    "curves": Kind(
        "curves_plots", "accuracy and loss by step and epsilon, calibration, confusion, classes, loss surface"
    ),
    "tradeoffs": Kind("tradeoffs", "clean accuracy and size against robust accuracy, the Pareto front", attacks=False),
    "filmstrip": Kind("filmstrip", "an image as PGD moves it, with the decision: as a strip and animated"),
    "lecture": Kind("lecture", "patches, positions, heads, FGSM and PGD, epsilon, targets, two trainings compared"),
}
Drawing = Callable[[Sequence["Subject"], pathlib.Path], list[pathlib.Path]]

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_multi_string("workdir", [], "A folder that training wrote; again for more.", flag_values=_FLAGS)
_WHAT = flags.DEFINE_string("what", "", "What to draw, comma separated; everything by default.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "Folder of the pictures; explain/ of the first run.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Of the run's data.", flag_values=_FLAGS)
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Images in a picture.", lower_bound=1, flag_values=_FLAGS)
_LIMIT = flags.DEFINE_integer("limit", None, "Images behind a figure; all by default.", flag_values=_FLAGS)
_THREAT = flags.DEFINE_string("threat", None, "Such as linf-8/255; the first run's by default.", flag_values=_FLAGS)
_STEPS = flags.DEFINE_integer("steps", 50, "Of PGD.", lower_bound=1, flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of the attacks and of every other draw.", flag_values=_FLAGS)
_PUBLISHED = flags.DEFINE_string(
    "published", "", "tradeoffs: published figures below, such as imagenet-linf-4/255.", flag_values=_FLAGS
)
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Two runs on one page: --compare RUN1 RUN2; nothing is drawn anew.", flag_values=_FLAGS
)
_JUDGE = flags.DEFINE_string(
    "judge",
    None,
    "semantics: a run that judges; by default a classifier fitted to the training split.",
    flag_values=_FLAGS,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for, the same for all subjects.

    Attributes:
      split: of the runs' data.
      examples: images in a picture.
      limit: images behind a figure; None for all.
      threat: of the attacks; None for the first run's.
      steps: of PGD.
      seed: of the attacks and of every other draw.
      judge: folder of the run that judges perturbations; None for a classifier fitted to the training split.
      published: figures to lay under trade-offs, "imagenet-linf-4/255"; "" for none.
    """

    split: str = "test"
    examples: int = 8
    limit: int | None = None
    threat: Threat | None = None
    steps: int = 50
    seed: int = 0
    judge: str | None = None
    published: str = ""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run to be drawn; what takes time is read when it is first asked for.

    Attributes:
      folder: of the run.
      name: what pictures call it: the folder's last part.
      options: what is asked for.
    """

    folder: pathlib.Path
    name: str
    options: Options = Options()

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The best checkpoint.

        Raises:
          ValueError: if there is none; the line says which command makes it.
        """
        if not list((self.folder / "checkpoints").glob("[0-9]*")):
            raise ValueError(
                f"workdir = {str(self.folder)!r}: holds no checkpoint yet; {_maker(self.folder)} makes one"
            )
        return loading.load(self.folder)

    @property
    def config(self) -> Any:
        """The run's configuration."""
        return self.classifier.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where the data have none."""
        return self.classifier.class_names or tuple(map(str, range(self.dataset.num_classes)))

    @functools.cached_property
    def dataset(self) -> Any:
        """The run's `data.Dataset`."""
        from robust_vit.training import experiment

        return experiment.build_data(self.config)

    @functools.cached_property
    def examples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images [N,H,W,C] float32 in [0,1], labels [N] and dataset indices [N] of the split."""
        from robust_vit import pixels, subject

        batches, _ = subject.split_batches(self.config, self.options.split, None, self.options.limit)
        rows = [[batch[name][batch["mask"]] for name in ("image", "label", "index")] for batch in batches]
        images, labels, indices = (np.concatenate(arrays) for arrays in zip(*rows))
        return pixels.as_float(images), labels, indices

    @property
    def threat(self) -> Threat:
        """Of the attacks."""
        return self.options.threat or self.classifier.threat

    def beside(self, folder: str | pathlib.Path) -> "Subject":
        """Another run of the same data, under the same options.

        Raises:
          ValueError: if it is none.
        """
        (found,) = subjects([folder], self.options)
        check_runs([self, found])
        return found

    def shown(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples of a picture: those of `examples` that come first."""
        return tuple(array[: self.options.examples] for array in self.examples)

    def attack(self, images: Array, labels: Array, indices: Array, name: str = "pgd", **keywords: Any) -> np.ndarray:
        """Adversarial images [N,H,W,C]: by default of PGD in the threat model, misclassified where it finds such."""
        if name == "pgd":
            keywords = {"steps": self.options.steps, "keep": "success"} | keywords
        given = {"threat": self.threat, "seed": self.options.seed, "indices": indices} | keywords
        return np.asarray(self.classifier.attack(name, images, labels, **given))


def _maker(folder: pathlib.Path) -> str:
    """The command that makes a run's checkpoints: the one that it was started by, where the folder says."""
    known = folder / "environment.json"
    command = provenance.read_json(known).get("command") if known.is_file() else None
    return command or f"robust-vit train --config=digits --workdir={folder}"


def subjects(workdirs: Sequence[str | pathlib.Path], options: Options | None = None) -> list[Subject]:
    """Opens runs to be drawn side by side; nothing is computed.

    Args:
      workdirs: run folders, one or more.
      options: what is asked for.

    Raises:
      ValueError: if a folder is no run, or two are one.
    """
    check("workdir", list(workdirs), bool(workdirs), "given, a folder that training wrote: robust-vit train makes one")
    folders = [pathlib.Path(workdir) for workdir in workdirs]
    for folder in folders:
        if not (folder / "config.json").is_file():
            maker = f"robust-vit train --config=digits --workdir={folder}"
            raise ValueError(f"workdir = {str(folder)!r}: holds no config.json, is no run; {maker} makes one")
    resolved = [folder.resolve() for folder in folders]
    check("workdir", [str(folder) for folder in folders], len(set(resolved)) == len(resolved), "different folders")
    short = [folder.name for folder in resolved]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    options = options or Options()
    if options.threat is None and len(folders) > 1:  # all are attacked in one threat model
        options = dataclasses.replace(options, threat=_threat(folders[0]))
    return [Subject(folder, name, options) for folder, name in zip(folders, names)]


def _threat(folder: pathlib.Path) -> Threat | None:
    attack = provenance.read_json(folder / "config.json").get("attack", {})
    return Threat(attack["norm"], attack["epsilon"]) if {"norm", "epsilon"} <= attack.keys() else None


def check_runs(found: Sequence[Subject]) -> None:
    """Raises ValueError, before anything is computed, unless all subjects have checkpoints and the same data."""
    _check_same_data(found)
    for subject in found:
        _ = subject.classifier


def _check_same_data(found: Sequence[Subject]) -> None:
    def data(subject: Subject) -> dict[str, Any]:
        stored = provenance.read_json(subject.folder / "config.json").get("data", {})
        return {name: stored.get(name) or None for name in ("name", "options", "evaluation_transforms")}

    first = data(found[0])
    for other in found[1:]:
        theirs = {name: value for name, value in data(other).items() if value}
        ours = {name: value for name, value in first.items() if value}
        alone = f"those of {found[0].name}, {ours}; robust-vit explain --workdir={other.folder} draws it alone"
        check(f"data of {other.name}", theirs, theirs == ours, alone)


def function(name: str) -> Drawing:
    """What draws a kind."""
    return importlib.import_module(f"robust_vit.analysis.{lookup('what', name, KINDS).module}").explain


def draw(
    found: Sequence[Subject],
    out: str | pathlib.Path,
    what: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, list[pathlib.Path]]:
    """Draws what is asked for.

    Args:
      found: of `subjects`.
      out: folder of the pictures; made where there is none.
      what: names of KINDS; by default all that the runs have, and a line for each that they have not.
      say: takes one line of progress.

    Returns:
      {name: the files written}.

    Raises:
      ValueError: for an unknown name, or what is asked for of a run that does not have it.
    """
    functions = {name: function(name) for name in what or KINDS}
    if any(KINDS[name].attacks for name in functions):
        check_runs(found)
    out, files = pathlib.Path(out), {}
    out.mkdir(parents=True, exist_ok=True)
    for name, drawing in functions.items():
        try:
            files[name] = drawing(found, out)
        except ValueError as error:
            if what:
                raise
            say(f"{name}: left out: {error}")
            continue
        for path in files[name]:
            say(f"written to {path}")
    return files


def explain(arguments: Sequence[str]) -> dict[str, list[pathlib.Path]] | None:
    """Does what the command line asks for, and returns the files written."""
    if commands.wants_help(arguments):
        return print(f"{overview()}\n{_FLAGS.get_help()}")
    runs = commands.parse(_FLAGS, arguments, positional="--compare" in arguments)
    if _COMPARE.value:
        return compare([*_WORKDIR.value, *runs])
    check("limit", _LIMIT.value, _LIMIT.value is None or _LIMIT.value > 0, "at least 1")
    options = Options(
        _SPLIT.value,
        _EXAMPLES.value,
        _LIMIT.value,
        None if _THREAT.value is None else Threat.parse(_THREAT.value),
        _STEPS.value,
        _SEED.value,
        _JUDGE.value,
        _PUBLISHED.value,
    )
    what = [name for name in _WHAT.value.split(",") if name]
    for name in what:
        lookup("what", name, KINDS)
    found = subjects(_WORKDIR.value, options)
    return draw(found, _OUT.value or found[0].folder / "explain", what)


def compare(runs: Sequence[str]) -> dict[str, list[pathlib.Path]]:
    """Puts two runs on one page, by default into the report of the first."""
    check("compare", list(runs), len(runs) == 2, "two run folders: robust-vit explain --compare RUN1 RUN2")
    first, second = (pathlib.Path(run) for run in runs)
    out = pathlib.Path(_OUT.value) if _OUT.value else first / "report"
    path = report.compare(first, second, out / f"{first.resolve().name}-{second.resolve().name}.html")
    print(f"written to {path}")
    return {"compare": [path]}


def overview() -> str:
    """What `robust-vit explain --help` says before the flags."""
    return __doc__.format(kinds="\n".join(f"    {name:14s} {kind.what}" for name, kind in KINDS.items()))


def main(arguments: Sequence[str]) -> dict[str, list[pathlib.Path]] | None:
    """Runs the command."""
    return commands.run(explain, arguments)


if __name__ == "__main__":
    main(sys.argv)

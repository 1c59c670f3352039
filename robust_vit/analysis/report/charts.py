"""The pictures of the page: those that a run has left, and those of the examples that were attacked for it."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from robust_vit import provenance
from robust_vit.analysis import curves, curves_plots, plots
from robust_vit.analysis.report import content
from robust_vit.analysis.report import pictures as encoded
from robust_vit.analysis.walks import Walk
from robust_vit.evaluation import record

BUDGET = 2_500_000  # bytes of base64, of all pictures together
FEW_CLASSES = 30  # up to which confusion is drawn
CAPTIONS = {
    "curves": "Training: loss, accuracies, epsilon and learning rate by epoch.",
    "sweep": "Accuracy against epsilon with its 95 % interval. An honest curve falls to nothing on the right.",
    "steps": "How many examples still stand after each step of the attack.",
    "loss": "What the attack maximises, step by step. A curve that still climbs at the end has not converged.",
    "calibration": "How often a confidence is right, without and under attack.",
    "confusion": "What examples are taken for under attack, in numbers of examples.",
    "epsilon": "Accuracy against epsilon with its 95 % interval.",
    "classes": "Clean accuracy and accuracy under attack of each class, the weakest first.",
    "surface": "The loss around an image; inside of the dashed square an attacker may go; hatched is wrong.",
    "tradeoff_clean": "Clean accuracy against robust accuracy, and the Pareto front.",
    "examples": "Clean images, what the attack adds, and the sum, with predictions.",
}
OF_PAGE = ("steps", "loss", "calibration", "confusion")


def write(walk: Walk, folder: pathlib.Path, names: Sequence[str]) -> None:
    """Draws the examples' curves into the page's folder: `steps.png` and others, with the numbers of each in a JSON."""
    one = {"": walk}
    drawn: dict[str, tuple[Any, Any]] = {
        "steps": (curves_plots.plot_steps(one), curves.by_step(walk)),
        "loss": (curves_plots.plot_loss(one), curves.loss_by_step(walk)),
        "calibration": (curves_plots.plot_calibration(walk), _calibrations(walk)),
    }
    if walk.clean_logits.shape[1] <= FEW_CLASSES:
        counts = curves.confusion(walk.adversarial_logits, walk.labels).tolist()
        drawn["confusion"] = (curves_plots.plot_confusion(walk, names), {"counts": counts, "classes": list(names)})
    attack = {"attack": walk.attack, "norm": walk.norm, "epsilon": walk.epsilon, "step_size": walk.step_size}
    for name, (figure, numbers) in drawn.items():
        save(folder / f"{name}.png", figure)
        provenance.write_json(folder / f"{name}.json", attack | {"examples": len(walk.labels)} | numbers)


def _calibrations(walk: Walk) -> dict[str, Any]:
    both = {"clean": walk.clean_logits, "attacked": walk.adversarial_logits}
    return {name: curves.calibration(logits, walk.labels) for name, logits in both.items()}


def save(path: pathlib.Path, figure: Any) -> None:
    """Writes a PNG in one step."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=120)
    provenance.write_atomically(path, held.getvalue())


def sweep(result: Mapping[str, Any], own: pathlib.Path) -> None:
    """Draws the sweep of the result, unless the picture in the page's folder is of the same numbers."""
    entry = record.suites_of(result).get("sweep")
    if entry is None:
        return
    told = {"sweep": {name: value for name, value in entry.items() if name not in ("measured", "seed")}}
    beside = own / "sweep.json"
    if not (own / "sweep.png").is_file() or content.stored(beside) != told:
        plots.sweep(entry, own / "sweep.png")
        provenance.write_json(beside, told)


def pictures(
    folder: pathlib.Path, result: Mapping[str, Any], own: pathlib.Path, examples: bool
) -> list[dict[str, str]]:
    """The pictures of a run for its page, with captions and what they show in words.

    Args:
      folder: of the run.
      result: the content of result.json.
      own: the page's folder.
      examples: whether those in the page's folder are of the result's weights, and so their pictures.

    Returns:
      [{"source" (a data URI), "caption", "alt"}], as many as fit a budget of bytes.
    """
    sweep(result, own)
    paths = [folder / "curves.png", *([own / "sweep.png"] if "sweep" in record.suites_of(result) else [])]
    paths += [own / f"{name}.png" for name in OF_PAGE if examples]
    drawn = {path.name for path in paths if path.is_file()}
    paths += sorted(path for path in (folder / "explain").glob("*.png") if path.name not in drawn)
    found = encoded.within([path for path in paths if path.is_file()], BUDGET)
    return [{"source": source, "caption": caption(path), "alt": in_words(path, result)} for path, source in found]


def caption(path: pathlib.Path) -> str:
    """What stands below a picture; of one that nobody described its name."""
    return CAPTIONS.get(path.stem, path.stem.replace("_", " ").replace("-", " "))


def in_words(path: pathlib.Path, result: Mapping[str, Any]) -> str:
    """The figures of a picture, for those who cannot see it."""
    if path.stem == "sweep" and "sweep" in record.suites_of(result):
        rows = [f"{row['accuracy']:.1%} at {record.pixels(row['epsilon'])}" for row in result["sweep"]["curve"]]
        return f"Accuracy against epsilon: {', '.join(rows)}."
    beside = path.with_suffix(".json")
    if path.stem == "steps" and beside.is_file():
        told = provenance.read_json(beside)
        last = len(told["step"]) - 1
        some = [f"{told['accuracy'][s]:.1%} after {s}" for s in sorted({0, 1, 2, 5, last // 2, last}) if s <= last]
        return f"Share that stands by steps of the attack: {', '.join(some)}."
    if path.stem == "calibration" and beside.is_file():
        told = provenance.read_json(beside)
        both = [f"{name} {100 * told[name]['error']:.1f} points" for name in ("clean", "attacked")]
        return f"Expected calibration error: {', '.join(both)}."
    return caption(path)


def model_words(config: Mapping[str, Any]) -> str:
    """The model and its data: `vit on digits`."""
    model, data = (config.get(section) or {} for section in ("model", "data"))
    return f"{model['name']} on {data['name']}" if "name" in model and "name" in data else ""

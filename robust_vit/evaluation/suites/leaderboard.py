"""The entry of an AutoAttack evaluation in RobustBench's form, written beside `result.json` where an id is given.

    --suite=autoattack --option=robustbench_id=Mine2026Robust --option=robustbench_authors="A. Author"

What only the author of a model knows is left empty unless it is given.
"""

import pathlib
import re
from typing import Any

from robust_vit import errors
from robust_vit.evaluation import leaderboard
from robust_vit.evaluation.leaderboard import AUTHOR_FIELDS, POINTS
from robust_vit.evaluation.suites import options
from robust_vit.evaluation.suites.context import Context

FOLDER = "robustbench"
ALIASES = {"imagenet2012": "imagenet", "imagenet1k": "imagenet"}  # of TFDS and Hugging Face

OPTIONS = {
    "robustbench_id": options.text(f"Writes {FOLDER}/<dataset>/<threat>/<id>.json, the leaderboard's form."),
    "robustbench_dataset": options.choice("Which leaderboard; by default by the name of the data.", POINTS),
    **{
        f"robustbench_{field}": options.text(f"The entry's field {field!r}; empty by default.")
        for field in AUTHOR_FIELDS
    },
}


def check(context: Context, version: Any) -> None:
    """Raises ValueError, before anything compiles, if an entry is asked for that RobustBench would not take."""
    given = [name for name in OPTIONS if name in context.options]
    if not given:
        return
    errors.check("option", given[0], "robustbench_id" in given, "given together with robustbench_id")
    errors.check("workdir", None, context.workdir is not None, "given, for the entry to be written to")
    errors.check("autoattack_version", version, version == "standard", "'standard', the one that RobustBench lists")
    _dataset(context)


def write(context: Context, result: Any) -> pathlib.Path | None:
    """Writes the entry where one is asked for, and returns its path."""
    model = context.options.get("robustbench_id")
    if model is None or result.version != "standard":
        return None
    dataset = _dataset(context)
    author = {field: context.options.get(f"robustbench_{field}", "") for field in AUTHOR_FIELDS}
    if result.examples != POINTS[dataset]:
        author["footnote"] = f"Evaluated on {result.examples} points; the leaderboard's are {POINTS[dataset]}."
    form = leaderboard.entry(result, dataset=dataset, **author)
    return leaderboard.write_entry(pathlib.Path(context.workdir) / FOLDER, model, context.norm, form)


def _dataset(context: Context) -> str:
    """`tfds:cifar10:3.0.2`, `huggingface:uoft-cs/cifar-10`: the word that is a leaderboard's, or the option."""
    words = re.split(r"[:/]", str(context.dataset or "").replace("-", "").lower())
    found = next((ALIASES.get(word, word) for word in words if ALIASES.get(word, word) in POINTS), words[-1])
    name = context.options.get("robustbench_dataset", found)
    allowed = f"given as one of {', '.join(POINTS)}, as the data ({context.dataset}) do not tell"
    errors.check("option robustbench_dataset", name, name in POINTS, allowed)
    return name

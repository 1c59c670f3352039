"""What the files of a run say, as plain values for the templates; nothing here is HTML.

Every function takes the content of a file and returns dicts, lists, texts and numbers.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from robust_vit.analysis.report import explanations
from robust_vit.evaluation import intervals, pairs, record, tables
from robust_vit.evaluation.record import pixels

# Which suite the claim rests on: the first of these that was measured.
STRENGTH = ("autoattack", "minimal", "pgd", "quick", "fgsm")
TITLES = {
    "clean": "no attack",
    "fgsm": "FGSM, one step",
    "pgd": "PGD",
    "sweep": "PGD against epsilon",
    "quick": "quick: a few steps of APGD",
    "autoattack": "AutoAttack",
    "minimal": "nearest adversarial image",
}
NORMS = {
    "linf": "no pixel value moves by more than {} of its range",
    "l2": "the change is at most {} long (Euclidean; pixel values in [0, 1])",
    "l1": "the changes of all pixel values sum to at most {} (pixel values in [0, 1])",
}
VERDICTS = {"warning": "warning", "ok": "ok", "skipped": "not asked"}

Content = dict[str, Any]


def stored(path: pathlib.Path) -> Content:
    """A JSON object of the run folder; {} where there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def percent(share: float | None, digits: int = 2) -> str:
    """0.9389 -> "93.89 %"."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def interval(low_high: Sequence[float]) -> str:
    """[0.909, 0.959] -> "90.9 – 95.9 %"."""
    return f"{100 * low_high[0]:.1f} – {100 * low_high[1]:.1f} %"


def title_of(suite: str) -> str:
    """A suite in words: `pgd:straight_through` -> "PGD through hidden gradients"."""
    name, _, adaptive = suite.partition(":")
    return TITLES.get(name, name) + (" through hidden gradients" if adaptive else "")


def threat_words(entry: Mapping[str, Any]) -> str:
    """The threat model in plain words."""
    epsilon = entry.get("epsilon")
    if "norm" not in entry or not isinstance(epsilon, int | float):
        return ""
    return NORMS.get(entry["norm"], entry["norm"] + " {}").format(pixels(epsilon))


def measured(result: Mapping[str, Any]) -> dict[str, Content]:
    """The suites of a result that have an accuracy."""
    return {name: entry for name, entry in record.suites_of(result).items() if entry.get("accuracy") is not None}


def strongest(result: Mapping[str, Any]) -> str | None:
    """The suite that the claim rests on: the strongest kind, and of its plain and adaptive forms the lower accuracy."""
    found = measured(result)
    for kind in STRENGTH:
        forms = [name for name in found if name.partition(":")[0] == kind]
        if forms:
            return min(forms, key=lambda name: found[name]["accuracy"])
    return None


def claim(result: Mapping[str, Any], workdir: str) -> Content:
    """What the run claims, in a headline and sentences, and what a reader must know before believing it.

    Returns:
      {"figure", "interval", "under", "threat", "examples", "clean", "clean_interval", "cautions": [{"text",
      "command"}]};
      "figure" is None where nothing was attacked.
    """
    found = measured(result)
    name = strongest(result)
    clean, entry = found.get("clean", {}), found.get(name or "", {})
    if not clean and "clean_accuracy" in entry:
        clean = {"accuracy": entry["clean_accuracy"], "interval": entry["clean_interval"]}
    version = entry.get("version")
    kind = f" ({version if isinstance(version, str) else ', '.join(version)})" if version else ""
    return {
        "figure": entry.get("accuracy"),
        "interval": entry.get("interval"),
        "under": title_of(name) + kind if name else "",
        "attack": tables.threat(entry) if name else "",
        "threat": threat_words(entry),
        "examples": (entry or clean).get("examples"),
        "split": str(result.get("split", "")),
        "clean": clean.get("accuracy"),
        "clean_interval": clean.get("interval"),
        "cautions": cautions(result, name, workdir),
    }


def cautions(result: Mapping[str, Any], name: str | None, workdir: str) -> list[Content]:
    """What stands between the figure and belief, each with the command that helps."""
    evaluate = f"robust-vit evaluate --workdir={workdir} --suite="
    found, masking, said = measured(result), record.suites_of(result).get("masking"), []
    if name is None:
        said.append(_caution("Nothing was attacked: this is no claim on robustness.", evaluate + "autoattack"))
    elif name.partition(":")[0] != "autoattack":
        text = f"{title_of(name)} alone flatters a model. AutoAttack is the measure that the field compares."
        said.append(_caution(text, evaluate + "autoattack"))
    elif found[name].get("version") != "standard":
        said.append(_caution("This is not the standard version of AutoAttack.", evaluate + "autoattack"))
    if name is not None:
        lower = [n for n, e in found.items() if _alike(e, found[name]) and e["accuracy"] < found[name]["accuracy"]]
        for other in lower:
            text = f"{title_of(other)} found fewer that stand: {percent(found[other]['accuracy'])}."
            said.append(_caution(text))
    if masking is None:
        said.append(_caution("Nobody asked whether the gradients are masked.", evaluate + "masking"))
    elif masking.get("warnings"):
        count = len(masking["warnings"])
        answers = "question has a bad answer" if count == 1 else "questions have bad answers"
        said.append(_caution(f"On masked gradients, {count} {answers}: see “Is this robustness real?” below."))
    return said


def _caution(text: str, command: str = "") -> Content:
    return {"text": text, "command": command}


def _alike(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = ("norm", "epsilon", "examples")
    return "norm" in entry and all(entry.get(key) == other.get(key) for key in same)


def figures(result: Mapping[str, Any]) -> list[Content]:
    """One row a suite that has an accuracy."""
    return [
        {
            "suite": name,
            "title": title_of(name),
            "threat": tables.threat(entry),
            "accuracy": entry["accuracy"],
            "low": entry["interval"][0],
            "high": entry["interval"][1],
            "examples": entry["examples"],
            "seconds": entry.get("measured", {}).get("seconds"),
            "notes": list(entry.get("notes") or ()),
        }
        for name, entry in measured(result).items()
    ]


def attacks(result: Mapping[str, Any]) -> list[Content]:
    """One row an attack of AutoAttack: points it was given, how many it broke, what is left."""
    entry = record.suites_of(result).get("autoattack", {})
    return [
        {
            "attack": row["attack"],
            "points": row["points"],
            "broken": row["broken"],
            "left": (row["points"] - row["broken"]) / entry["examples"],
            "seconds": row["seconds"],
        }
        for row in entry.get("rows", ())
    ]


def class_names(result: Mapping[str, Any], classes: int) -> list[str]:
    """K names; numbers where the result has none."""
    known = [str(name) for name in result.get("class_names") or ()]
    return known + [str(k) for k in range(len(known), classes)]


def per_class(result: Mapping[str, Any], labels: Mapping[int, int] | None = None) -> Content | None:
    """Accuracy by class under every suite that knows it.

    Args:
      labels: {dataset index: label}, where known: suites that know only each example's outcome are counted by them.

    Returns:
      {"suites": titles, "rows": [{"name", "examples", "cells": [{"accuracy", "low", "high"} or None]}]}, or None.
    """
    columns = {name: _classes(entry, labels or {}) for name, entry in measured(result).items()}
    columns = {name: rows for name, rows in columns.items() if rows}
    if not columns:
        return None
    count = max(max(rows) for rows in columns.values()) + 1
    rows = []
    for k, name in enumerate(class_names(result, count)[:count]):
        cells = [_cell(*rows.get(k, (0, 0))) for rows in columns.values()]
        examples = max(rows.get(k, (0, 0))[1] for rows in columns.values())
        if examples:
            rows.append({"name": name, "examples": examples, "cells": cells})
    return {"suites": [title_of(name) for name in columns], "rows": rows}


def _classes(entry: Mapping[str, Any], labels: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """{class: (correct, examples)}."""
    if entry.get("per_class"):
        return {k: (row["correct"], row["examples"]) for k, row in enumerate(entry["per_class"])}
    outcomes = pairs.unpack(entry["outcomes"]) if entry.get("outcomes") else {}
    if not outcomes or not outcomes.keys() <= labels.keys():
        return {}
    found: dict[int, tuple[int, int]] = {}
    for index, right in outcomes.items():
        correct, examples = found.get(labels[index], (0, 0))
        found[labels[index]] = (correct + right, examples + 1)
    return found


def _cell(correct: int, examples: int) -> Content | None:
    if not examples:
        return None
    low, high = intervals.wilson(correct, examples)
    return {"accuracy": correct / examples, "low": low, "high": high}


def findings(result: Mapping[str, Any]) -> Content | None:
    """The masking report in plain words, warnings first; None where it was not made."""
    entry = record.suites_of(result).get("masking")
    if entry is None:
        return None
    order = list(VERDICTS)
    rows = [
        {
            "name": found["name"],
            "verdict": found["verdict"],
            "word": VERDICTS.get(found["verdict"], found["verdict"]),
            "saw": found["saw"],
            "rule": found["threshold"],
            "do": found["advice"] or explanations.of(found["name"]).remedy,
            **explanations.of(found["name"])._asdict(),
        }
        for found in entry["findings"]
    ]
    rows.sort(key=lambda row: order.index(row["verdict"]) if row["verdict"] in order else len(order))
    return {"rows": rows, "warnings": len(entry.get("warnings", ())), "points": entry.get("points")}


def provenance(result: Mapping[str, Any], folder: pathlib.Path) -> Content:
    """How the figures were obtained: commands, versions, devices, configuration."""
    environment, config = stored(folder / "environment.json"), stored(folder / "config.json")
    commands = [("training", environment["command"])] if environment.get("command") else []
    for name, entry in record.suites_of(result).items():
        told = entry.get("measured", {})
        if told.get("command") and told["command"] not in [command for _, command in commands]:
            commands.append((name, told["command"]))
    facts = {
        "weights": str(result.get("weights", {}).get("hash", ""))[:16],
        "training step": result.get("weights", {}).get("step"),
        "examples": result.get("split"),
        "revision": result.get("git") or environment.get("git"),
        "devices": _devices(result.get("devices") or environment.get("devices") or {}),
        "platform": result.get("platform") or environment.get("platform"),
    }
    return {
        "commands": [{"what": what, "command": command} for what, command in commands],
        "facts": {name: str(value) for name, value in facts.items() if value not in (None, "")},
        "versions": {str(k): str(v) for k, v in (result.get("versions") or environment.get("versions") or {}).items()},
        "config": json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    }


def _devices(devices: Mapping[str, Any]) -> str:
    return f"{devices.get('count')} x {devices.get('kind')}" if devices else ""

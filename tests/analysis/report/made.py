"""A run folder of made-up figures, whose every text holds markup: what a page must show as text."""

import json

import numpy as np

from robust_vit.analysis.walks import Walk
from robust_vit.evaluation import pairs, record

EVIL = "<img src=x onerror=alert(1)>"
NAMES = ["cat", EVIL, "</script><script>alert(2)</script>", "dog & 'friends' \"quoted\""]
WEIGHTS = "e12bf795e718"
EXAMPLES, CLASSES = 12, 4


def walk(steps=3, seed=0, size=8, channels=1, examples=EXAMPLES):
    """Made-up examples: 0 misclassified, the odd ones flipped at step 2, the others standing."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.2, 0.8, (examples, size, size, channels)).astype(np.float32)
    change = np.where(rng.uniform(size=images.shape) > 0.5, 0.1, -0.1).astype(np.float32)
    labels = np.arange(examples) % CLASSES
    odd = np.arange(examples) % 2 == 1
    clean = 3.0 * np.eye(CLASSES)[labels] + rng.uniform(0, 0.5, (examples, CLASSES))
    clean[0] = np.roll(clean[0], 1)
    attacked = np.where(odd[:, None], np.roll(clean, 1, axis=1), clean)
    wrong = np.zeros((steps + 1, examples), bool)
    wrong[2:, odd], wrong[:, 0] = True, True
    loss = np.linspace(0.1, 2.0, steps + 1)[:, None] * np.linspace(0.5, 1.5, examples)
    return Walk(
        indices=np.arange(examples) + 100,
        labels=labels,
        images=images,
        adversarial=np.clip(images + change, 0, 1),
        clean_logits=clean.astype(np.float32),
        adversarial_logits=attacked.astype(np.float32),
        loss=loss.astype(np.float32),
        wrong=wrong,
        norm="linf",
        epsilon=0.1,
        step_size=0.05,
    )


def entry(correct, examples=EXAMPLES, **more):
    """A suite's entry."""
    from robust_vit.evaluation import intervals

    found = {"accuracy": correct / examples, "interval": list(intervals.wilson(correct, examples))}
    measured = {"seconds": 1.5, "command": f"robust-vit evaluate {EVIL}", "date": "2026-01-01"}
    return found | {"examples": examples, "correct": correct, "seed": 0, "measured": measured} | more


def result(**more):
    """The content of result.json: clean and PGD."""
    walked = walk()
    threat = {"norm": "linf", "epsilon": 0.1, "steps": 3, "step_size": 0.05}
    made = {
        "schema": 2,
        "weights": {"hash": WEIGHTS, "step": 7},
        "split": f"test {EVIL}",
        "class_names": NAMES,
        "command": "robust-vit",
        "versions": {"python": "3.11", "jax": EVIL},
        "devices": {"kind": "cpu:cpu", "count": 1, "hosts": 1},
        "git": "",
        "platform": EVIL,
        "clean": entry(11, outcomes=pairs.pack(walked.indices, walked.clean_right)),
        "pgd": entry(5, outcomes=pairs.pack(walked.indices, walked.standing), **threat),
    }
    return made | more


CURVE = [{"epsilon": e, "accuracy": a, "interval": [a / 2, a]} for e, a in ((0.0, 0.9), (0.1, 0.5), (0.4, 0.0))]
SWEEP = {"curve": CURVE, "norm": "linf", "seed": 0, "measured": {"seconds": 1.0}, "threat_epsilon": 0.1}

FINDINGS = [
    {"name": "static_check", "verdict": "ok", "saw": "nothing", "threshold": "none", "advice": "", "numbers": {}},
    {"name": "noise", "verdict": "warning", "saw": EVIL, "threshold": "rule", "advice": f"do {EVIL}", "numbers": {}},
    {"name": "of_tomorrow", "verdict": "skipped", "saw": "why", "threshold": "", "advice": "", "numbers": {}},
]
MASKING = {"findings": FINDINGS, "warnings": ["noise"], "points": 12, "ok": False, "measured": {}}


def folder(path, with_walk=True, **more):
    """A run folder with result, configuration, environment and examples."""
    path.mkdir(parents=True, exist_ok=True)
    record.write(path / "result.json", result(**more))
    config = {"model": {"name": EVIL}, "data": {"name": "digits", "options": {}}, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    (path / "environment.json").write_text(json.dumps({"command": f"train {EVIL}", "versions": {}}))
    if with_walk:
        (path / "report").mkdir(exist_ok=True)
        walk().save(path / "report" / "examples.npz", classifier=WEIGHTS, split=f"test {EVIL}")
    return path

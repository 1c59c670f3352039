"""The pages of the masking findings: the text by hand, the rule and the words of a warning from the program itself."""

import ast
import inspect
import pathlib
from collections.abc import Callable

import numpy as np

from robust_vit.evaluation.masking import checks, failures, findings, report
from robust_vit.evaluation.masking.findings import Finding
from robust_vit.evaluation.masking.program import lint

FOLDER = "explanation/masking"
ALL, NONE, HALF = np.ones(16, bool), np.zeros(16, bool), np.arange(16) % 2 == 0
CLIMB = np.linspace(0.1, 2.0, 31)[:, None] * np.ones((1, 16))  # a loss that never comes to rest, [T+1,N]
FALLEN = np.concatenate([CLIMB[::3], CLIMB[10::-1]])
LATE = np.arange(31)[:, None] == np.full((1, 16), 15)  # misclassified half way, and at no other step


# What `checks` hands to the two kinds of comparison.
ADVICE = {
    "one_step": "many steps must do what one does: the gradient misleads, or the step is bad",
    "black_box": "an attack without gradients must not win: the white-box gradients are masked",
}
# Each finding as it reads when it warns, from numbers made for it; the rule beside it is the report's own.
EXAMPLES: dict[str, Callable[[], Finding]] = {
    "hidden_gradient": lambda: findings.hidden_gradient(np.full(16, 0.8)),
    "nonfinite_logits": lambda: findings.finite_logits(~HALF),
    "probabilities_as_logits": lambda: findings.probabilities(np.ones(16), np.zeros(16)),
    "endless_loop": lambda: findings.endless_loop(HALF, 1000),
    "repeatability": lambda: findings.repeatability(0.03, 2, 1e-7),
    "batch_dependence": lambda: findings.batch_dependence(0.03, 2, 1e-7),
    "unavailable_gradients": lambda: findings.unavailable_gradients(ALL, NONE),
    "saturated_loss": lambda: findings.saturated_loss(ALL, NONE, np.full(16, 150.0)),
    "saturated_activation": lambda: findings.saturated_activation([("tanh", "defence.py:12", 0.97)]),
    "gradient_mismatch": lambda: findings.gradient_mismatch(
        np.ones((1, 8, 16)), np.zeros((1, 8, 16)), np.ones(16), 1e-7
    ),
    "one_step": lambda: failures.weaker_attack_wins("one_step", "one step", ALL, HALF, ADVICE["one_step"]),
    "cross_entropy_against_dlr": lambda: failures.loss_gap("cross_entropy_against_dlr", "DLR", NONE, ALL),
    "cross_entropy_against_margin": lambda: failures.loss_gap("cross_entropy_against_margin", "margin", NONE, ALL),
    "epsilon_sweep": lambda: failures.epsilon_sweep((0.05, 0.1, 0.4, 1.0), (0.8, 0.6, 0.55, 0.5)),
    "loss_against_steps": lambda: failures.loss_against_steps(FALLEN),
    "silent_success": lambda: failures.silent_success(LATE),
    "incomplete_optimisation": lambda: failures.incomplete_optimisation(CLIMB, NONE),
    "noise": lambda: failures.noise(np.stack([HALF, ~HALF]), NONE),
    "unstable_predictions": lambda: failures.unstable_predictions(np.ones(16), -np.ones((4, 16)), NONE),
    "black_box": lambda: failures.weaker_attack_wins(
        "black_box", "Square with 500 queries", ALL, NONE, ADVICE["black_box"]
    ),
    "transfer": lambda: failures.weaker_attack_wins("transfer", "PGD on another model", ALL, NONE, ADVICE["black_box"]),
    "straight_through": lambda: failures.straight_through(("rounding",), NONE, ALL),
    "static_check": lambda: findings.static((), None)[0],
}


def names() -> list[str]:
    """Every finding that a report may hold: the questions, and the kinds of the static check."""
    return [*EXAMPLES, *lint.ADVICE]


def pages(docs: pathlib.Path) -> dict[str, str]:
    """{path: Markdown}: a page for every finding, and the list of them."""
    found = {f"{FOLDER}/{name}.md": _page(docs, name) for name in names()}
    found[f"{FOLDER}/index.md"] = _index(docs)
    return found


def title(docs: pathlib.Path, name: str) -> str:
    """The question that a finding asks: the head line of its page."""
    return (docs / FOLDER / f"{name}.md").read_text().partition("\n")[0].removeprefix("# ")


def _page(docs: pathlib.Path, name: str) -> str:
    text = (docs / FOLDER / f"{name}.md").read_text().rstrip()
    if name in lint.ADVICE:
        rule = "no such operation between image and logits"
        return f"{text}\n\n## What the report says\n\n**Rule** {rule}.\n\n**Advice** {lint.ADVICE[name]}.\n"
    made = EXAMPLES[name]()
    said = [f"**Rule** {made.threshold}."]
    if made.verdict == findings.WARNING:
        said = [f"**A warning reads** `{made.saw}`", *said, f"**Advice** {made.advice}."]
    return "\n\n".join([text, "## What the report says", *said]) + "\n"


def _index(docs: pathlib.Path) -> str:
    head = (docs / FOLDER / "index.md").read_text().rstrip()
    of = lambda chosen: "\n".join(f"* [`{name}`]({name}.md): {title(docs, name)}" for name in chosen)  # noqa: E731
    return (
        f"{head}\n\n## Questions\n\n{of(EXAMPLES)}\n\n## Operations that the static check names\n\n{of(lint.ADVICE)}\n"
    )


def in_the_program() -> set[str]:
    """The names that the report's own source gives to findings."""
    found = set(lint.ADVICE)
    for module in (findings, failures, checks, report):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "id", getattr(called, "attr", ""))
            first = node.args[0] if called is not None and node.args else None
            if name in MAKERS and isinstance(first, ast.Constant):
                found.add(first.value)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "name":
                found.add(node.value.value)
    return found


MAKERS = ("finding", "skipped", "Finding", "weaker_attack_wins", "loss_gap")

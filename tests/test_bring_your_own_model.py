"""Every example of docs/bring_your_own_model.md runs as it stands."""

import pathlib
import re

import numpy as np
import pytest

RANK_PROMOTION = "allow"  # of the models that are made here

PAGE = pathlib.Path("docs/bring_your_own_model.md").read_text()
EXAMPLES = {
    title: code for title, code in re.findall(r"## ([^\n]+)\n(?:(?!## ).)*?```python\n(.*?)```", PAGE, re.DOTALL)
}
NEEDS = {"Equinox": "equinox", "Haiku": "haiku", "PyTorch": "torch"}


def test_every_section_has_an_example():
    assert list(EXAMPLES) == re.findall(r"^## (.*)$", PAGE, re.MULTILINE) and len(EXAMPLES) >= 7


@pytest.mark.parametrize("title", [pytest.param(t, marks=[pytest.mark.peers] * (t in NEEDS)) for t in EXAMPLES])
def test_the_example_runs(title):
    if title in NEEDS:
        pytest.importorskip(NEEDS[title], reason=f"the example of {title} needs the package {NEEDS[title]}")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = {"images": images, "labels": np.arange(4)}
    exec(EXAMPLES[title], found)  # the reader's own program
    moved = np.abs(np.asarray(found["adversarial"]) - images / 255.0).max()
    assert 0.02 < moved <= 8 / 255 + 1e-6

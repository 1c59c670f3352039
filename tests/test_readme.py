"""What the README tells people to type works."""

import pathlib
import re

import numpy as np

README = pathlib.Path("README.md").read_text()


def test_the_python_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    found: dict = {}
    exec(code, found)  # the reader's own first program
    moved = np.abs(np.asarray(found["adversarial"]) - found["batch"]["image"] / 255.0).max()
    assert 0 < moved <= 0.1 + 1e-6


def test_every_file_it_names_exists():
    for name in set(re.findall(r"(?:configs|robust_vit|tests|docs|benchmarks)/[\w/]+\.(?:py|png|md)", README)):
        assert pathlib.Path(name).is_file(), name

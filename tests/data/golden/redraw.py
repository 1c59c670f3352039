"""Weights that need no file: every value is drawn from the tensor's name, by a generator that NumPy keeps frozen."""

import zlib

import numpy as np


def redraw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws the tensors of a state dict, all away from neutral values (0 for biases, 1 for scales).

    Args:
      shapes: timm's name -> shape in PyTorch's layout.

    Returns:
      name -> float32 array.
    """
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))  # its stream never changes, unlike that of Generator
    unit = random.random_sample(shape) * 2 - 1
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return (1 + 0.5 * unit).astype(np.float32)
    if name.endswith("weight"):
        fan_in = np.prod(shape[1:])
        return (unit * (3 / fan_in) ** 0.5).astype(np.float32)
    return (0.3 * unit).astype(np.float32)

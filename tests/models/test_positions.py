"""Positions: formulas by hand, and resampling equal to torch's bicubic."""

import math

import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.models.parts import positions


def test_sinusoidal_is_the_formula():
    table = positions.sinusoidal(7, 8)
    assert table.shape == (7, 8)
    for place in (0, 3, 6):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            np.testing.assert_allclose(table[place, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)])


def test_fourier_is_the_formula():
    table = positions.fourier(3, 5, hidden=8)
    assert table.shape == (3, 5, 16) and table.dtype == np.float32
    for y, x in ((0, 0), (2, 4), (1, 3)):
        for axis, (place, size) in enumerate(((y, 3), (x, 5))):
            for i in range(8):
                angle = (place + 1) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * (i // 2) / 8)
                expected = math.cos(angle) if i % 2 else math.sin(angle)
                assert table[y, x, axis * 8 + i] == pytest.approx(expected, abs=1e-5)


def test_relative_index_depends_on_the_displacement_only():
    h, w = 3, 4
    index = positions.relative_index((h, w))
    place = [(i, j) for i in range(h) for j in range(w)]
    for q, (qy, qx) in enumerate(place):
        for k, (ky, kx) in enumerate(place):
            assert index[q, k] == (qy - ky + h - 1) * (2 * w - 1) + (qx - kx + w - 1)


def test_relative_index_gives_prefix_tokens_rows_of_their_own():
    index, rows = positions.relative_index((2, 2), prefix=2), 9
    assert index.shape == (6, 6)
    assert (index[:2, 2:] == rows).all() and (index[2:, :2] == rows + 1).all() and (index[:2, :2] == rows + 2).all()
    np.testing.assert_array_equal(index[2:, 2:], positions.relative_index((2, 2)))


# torch.nn.functional.interpolate(mode="bicubic", antialias=...) of arange(old)^2, torch 2.13 in float64
TORCH = {
    (4, 7, False): [-0.0992164723, 0.15625, 0.8042091837, 2.125, 4.4246537901, 7.4807762391, 9.4960823615],
    (4, 7, True): [-0.0793269231, 0.1875106058, 0.8625704418, 2.25, 4.3184875477, 7.60427626, 9.3966346154],
    (8, 3, False): [0.5960648148, 12.125, 38.8206018519],
    (8, 3, True): [1.0357935217, 12.7185596563, 37.4852832421],
}


@pytest.mark.parametrize(("old", "new", "antialias"), TORCH)
def test_bicubic_numbers(old, new, antialias):
    ours = positions.bicubic_matrix(old, new, antialias) @ np.arange(old) ** 2
    np.testing.assert_allclose(ours, TORCH[old, new, antialias], atol=1e-8)


@examples(30)
@given(st.integers(1, 17), st.integers(1, 17), st.booleans())
def test_bicubic_reproduces_constants_and_is_the_identity_at_equal_size(old, new, antialias):
    matrix = positions.bicubic_matrix(old, new, antialias)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)  # no direction is preferred
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (8, 8)), ((4, 4), (7, 5)), ((16, 16), (2, 3)), ((5, 9), (9, 5))])
def test_resampling_equals_torch(old, new, antialias):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    grid = np.random.default_rng(0).normal(size=(*old, 3))
    ours = positions.resize_grid(grid, new, antialias)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(grid.transpose(2, 0, 1)[None].copy()), new, mode="bicubic", antialias=antialias
    )
    np.testing.assert_allclose(ours, theirs[0].numpy().transpose(1, 2, 0), atol=1e-10)


def test_resize_learned_keeps_prefix_tokens():
    embedding = np.random.default_rng(0).normal(size=(1, 2 + 16, 3)).astype(np.float32)
    resized = positions.resize_learned(embedding, (4, 4), (6, 2), prefix=2)
    assert resized.shape == (1, 2 + 12, 3) and resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :2], embedding[:, :2])
    np.testing.assert_allclose(positions.resize_learned(embedding, (4, 4), (4, 4), 2), embedding, atol=1e-6)
    with pytest.raises(ValueError, match="18 positions"):
        positions.resize_learned(embedding, (4, 4), (2, 2), prefix=1)


def test_resize_relative_keeps_prefix_rows():
    table = np.random.default_rng(0).normal(size=(7 * 7 + 3, 2))
    resized = positions.resize_relative(table, (4, 4), (2, 3), prefix=True)
    assert resized.shape == (3 * 5 + 3, 2)
    np.testing.assert_array_equal(resized[-3:], table[-3:])
    with pytest.raises(ValueError, match="52 rows"):
        positions.resize_relative(table, (4, 4), (2, 2))

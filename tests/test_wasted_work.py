"""No pass of the model is wasted: Madry's PGD-k is k gradients to the image and one step, counted in the program."""

import pytest

from robust_vit import config as config_lib
from robust_vit.training import cost


@pytest.mark.parametrize("steps", [1, 3])
def test_pgd_k_is_k_plus_one_gradients_and_one_backward_to_the_weights(steps):
    """k (forward + backward to the image), then forward and backward to image and weights: 2k + 3 units an image."""
    config = config_lib.load_file("configs/digits.py:adversarial")
    config.attack.steps, config.training.epochs = steps, 20.0
    assert cost.forwards(config) == pytest.approx(20 * (2 * steps + 3), rel=1e-3)

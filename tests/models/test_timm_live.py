"""timm's own models at full size, built here and now, against ours: names, weights both ways, logits, gradients.

By default one model of each family; ROBUST_VIT_ALL_MODELS=1 takes every name that both have (44; 25 minutes on two busy
cores, more than 12 GB of memory for the largest), ROBUST_VIT_ALL_MODELS=a,b just those.
"""

import gc
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models
from robust_vit.models.weights import dialects, torch_weights

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install .[peers]")

pytestmark = [pytest.mark.slow, pytest.mark.peers]


def import_timm():
    """timm, beside a torch without torchvision's compiled operators: declare the two schemas that its import misses."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # a torchvision that is whole has declared them
            pass
    timm = pytest.importorskip("timm", reason="needs timm: pip install .[peers]")
    timm.layers.set_fused_attn(False)
    return timm, library


timm, _library = import_timm()
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from test_torch_weights import respelled_convnext, respelled_swin, respelled_xcit

ONE_OF_EACH = (
    "cait_xxs24_224",
    "convnext_tiny",
    "deit_tiny_distilled_patch16_224",
    "efficientvit_b0",
    "mobilevit_xxs",
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
)
BOTH = [name for name in models.names() if timm.is_model(name)]
_asked = os.environ.get("ROBUST_VIT_ALL_MODELS", "")
NAMES = ONE_OF_EACH if not _asked else BOTH if _asked == "1" else _asked.split(",")
RELU = ("resnet50",)  # its gates flip between two float32 computations: the gradient is compared in test_golden.py


def theirs(name):
    """timm's model in evaluation mode, every tensor moved away from its neutral initial value."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if key.endswith("running_var"):
                tensor.mul_(torch.empty_like(tensor).uniform_(0.5, 1.5))
            else:
                tensor.add_(torch.randn_like(tensor) * (0.2 if tensor.ndim == 1 else 0.01))
    return model


def ours(name, size):
    """The same model here, scanned where the family can be: the weights convert to that form too."""
    fields = dict(num_classes=1000, image_size=size, mean=(), std=())
    try:
        return models.build(name, scan=True, **fields)
    except ValueError:  # blocks that are not equal
        return models.build(name, **fields)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_logits_gradient_and_weights_both_ways(name):
    model = theirs(name)
    size = model.default_cfg["input_size"][-1]
    images = torch.rand((2, 3, size, size)).requires_grad_()
    weights = torch.randn(2, 1000)
    logits = model(images)
    (logits * weights).sum().backward()

    module = ours(name, size)
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    variables, report = torch_weights.from_timm(module, dialects.translate(state).tensors)
    assert not report.problem() and not report.reshaped

    def score(images, variables):
        found = module.apply(variables, images)
        return (found * weights.numpy()).sum(), found

    pixels = jnp.asarray(images.detach().numpy().transpose(0, 2, 3, 1))
    gradient, found = jax.jit(jax.grad(score, has_aux=True))(pixels, variables)
    difference = relative(found, logits.detach().numpy())
    expected = images.grad.numpy().transpose(0, 2, 3, 1)
    by_pixel = relative(gradient, expected)
    print(f"\n{name}: logits {difference:.1e}, gradient {by_pixel:.1e}")
    assert difference < 2e-5
    assert name in RELU or by_pixel < 2e-4  # two float32 computations, each within 1e-4 of float64

    back = {key: torch.from_numpy(np.array(array)) for key, array in torch_weights.to_timm(module, variables).items()}
    model.load_state_dict(back)  # strictly
    assert all(np.array_equal(state[key], tensor.numpy()) for key, tensor in back.items() if tensor.is_floating_point())
    del model, variables, back
    gc.collect()


def test_a_file_that_torch_saves(tmp_path):
    model = theirs("xcit_nano_12_p16_224")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 1}, tmp_path / "a.pth"
    )
    module, variables, report = torch_weights.load("xcit_nano_12_p16_224", tmp_path / "a.pth")
    assert len(report.loaded) == sum(1 for key in model.state_dict() if not key.endswith("num_batches_tracked"))
    np.testing.assert_array_equal(variables["params"]["cls_token"], model.cls_token.detach().numpy())


@pytest.mark.parametrize(
    "name, respell, filter_name",
    [
        ("xcit_nano_12_p16_224", respelled_xcit, "xcit"),
        ("swin_tiny_patch4_window7_224", respelled_swin, "swin_transformer"),
        ("convnext_tiny", respelled_convnext, "convnext"),
    ],
)
def test_released_names_are_read_as_timm_reads_them(name, respell, filter_name):
    model = theirs(name)
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items() if not key.endswith("tracked")}
    respelled = respell(state)
    as_tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in respelled.items()}
    filtered = getattr(timm.models, filter_name).checkpoint_filter_fn(as_tensors, model)
    found = dialects.translate(respelled).tensors
    assert found.keys() == filtered.keys()
    assert all(np.array_equal(found[key], tensor.numpy()) for key, tensor in filtered.items())

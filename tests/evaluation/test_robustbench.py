"""RobustBench's subset, preprocessing and form of a result."""

import dataclasses
import hashlib
import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from robust_vit import evaluate
from robust_vit.evaluation import robustbench, suites
from robust_vit.evaluation.autoattack.results import Result
from robust_vit.evaluation.suites import leaderboard
from robust_vit.evaluation.verification import Verification

NAMES = ["n02/b.JPEG", "n01/a.JPEG", "n03/c.JPEG"]  # the order of the list, not of the classes


@pytest.fixture
def imagenet(tmp_path):
    """A list file and a folder of four classes, one image a class of the list."""
    rng = np.random.default_rng(0)
    for name in ("n01", "n02", "n03", "n00"):
        (tmp_path / "val" / name).mkdir(parents=True)
    for name, size in zip(NAMES, [(300, 260), (257, 400), (320, 320)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / "val" / name)
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path, tmp_path / "val", hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_list_sets_order_and_labels(imagenet):
    path, folder, sha256 = imagenet
    subset = robustbench.Subset(path, folder, sha256=sha256)
    images, labels = robustbench.arrays(subset)
    assert images.shape == (3, 224, 224, 3) and images.dtype == np.uint8
    assert list(labels) == [2, 1, 3] and subset.num_classes == 4
    assert len(robustbench.Subset(path, folder, examples=2, sha256=None)) == 2


def test_another_list_is_refused(imagenet):
    path, folder, _ = imagenet
    with pytest.raises(ValueError, match="d4121626d077"):
        robustbench.Subset(path, folder)
    with pytest.raises(ValueError, match="between 1 and 3"):
        robustbench.Subset(path, folder, examples=4, sha256=None)
    (folder / NAMES[2]).unlink()
    with pytest.raises(ValueError, match="1 images are missing"):
        robustbench.Subset(path, folder, sha256=None)


@pytest.mark.parametrize(
    "name, size", [("Res256Crop224", 224), ("BicubicRes256Crop224", 224), ("Res224", 224), ("Crop288", 288)]
)
@pytest.mark.parametrize("shape", [(300, 260), (250, 400)])
def test_preprocessing_is_that_of_torchvision(name, size, shape):
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    ours = robustbench.host.as_array(robustbench.PREPROCESSINGS[name](image, None))
    assert ours.shape == (size, size, 3)
    if name == "Crop288":
        return
    short = 224 if name == "Res224" else 256
    height, width = (
        (short, int(short * shape[1] / shape[0])) if shape[0] < shape[1] else (int(short * shape[0] / shape[1]), short)
    )
    kernel = Image.Resampling.BICUBIC if "Bicubic" in name else Image.Resampling.BILINEAR
    resized = np.asarray(image.resize((width, height), kernel))
    top, left = int(round((height - 224) / 2)), int(round((width - 224) / 2))
    np.testing.assert_array_equal(ours, resized[top : top + 224, left : left + 224])


def test_centre_crop_cuts_and_pads():
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    np.testing.assert_array_equal(robustbench.CentreCrop(4)(pixels), pixels[1:5, 0:4])
    padded = robustbench.CentreCrop(8)(pixels)
    np.testing.assert_array_equal(padded[1:7, 1:6], pixels)
    assert padded.sum() == pixels.sum()


@pytest.fixture
def result():
    robust = np.array([True, False, False, True])
    return Result(
        version="standard",
        norm="linf",
        epsilon=np.full(4, 4 / 255, np.float32),
        indices=np.arange(4),
        clean_correct=np.array([True, True, False, True]),
        robust=robust,
        status=np.array(["robust", "broken", "misclassified", "robust"]),
        broken_by=["", "apgd-ce", "", ""],
        adversarial=np.zeros((4, 2, 2, 3), np.float32),
        rows=[],
        notes=[],
        verification=Verification(1, np.array([True]), [""], 1.0),
        header={"weights": "abc"},
    )


def test_an_entry_has_the_fields_of_the_leaderboard(result, tmp_path):
    form = robustbench.entry(result, dataset="imagenet", name="A model", architecture="XCiT-S12", external=0.4)
    assert form["eps"] == "4/255" and form["clean_acc"] == "75.00"
    assert form["autoattack_acc"] == form["reported"] == "50.00" and form["external"] == "40.00"
    assert form["additional_data"] is False and form["number_forward_passes"] == 1 and form["venue"] == ""
    path = robustbench.write_entry(tmp_path, "Me2026_XCiT-S12", "linf", form)
    assert path == tmp_path / "imagenet" / "Linf" / "Me2026_XCiT-S12.json"
    assert json.loads(path.read_text()) == form


def test_an_entry_is_of_the_standard_version(result):
    with pytest.raises(ValueError, match="standard"):
        robustbench.entry(dataclasses.replace(result, version="quick"), dataset="cifar10")
    with pytest.raises(ValueError, match="architecture"):
        robustbench.entry(result, dataset="cifar10", architekture="x")
    l2 = dataclasses.replace(result, norm="l2", epsilon=np.full(4, 0.5, np.float32))
    assert robustbench.entry(l2, dataset="cifar10")["eps"] == "0.5"


def test_adversarial_images_come_back(result):
    file = io.BytesIO()
    robustbench.save_adversarial(file, result, np.arange(4))
    file.seek(0)
    with np.load(file) as stored:
        np.testing.assert_array_equal(stored["adversarial"], result.adversarial)
        assert (
            list(stored["labels"]) == [0, 1, 2, 3] and str(stored["norm"]) == "linf" and str(stored["weights"]) == "abc"
        )


# --------------------------------------------------------------------------------------------------- by the command


def test_the_list_is_evaluated_by_the_command(imagenet, tmp_path, monkeypatch, capsys):
    """In the list's order, preprocessed, with the labels of the folders; the entry is named by the leaderboard."""
    path, folder, sha256 = imagenet
    seen, clean = [], suites.SUITES["clean"]
    module = type(sys)("mine")
    module.make = lambda: lambda x: jnp.mean(x, (1, 2)) @ jnp.eye(3, 4)
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(robustbench, "LIST_SHA256", sha256)
    monkeypatch.setattr(suites, "_canary", lambda context: {})  # which would compare large images one by one
    monkeypatch.setitem(suites.SUITES, "clean", lambda context: seen.append(context) or clean(context))
    flags = ("--logits_fn=mine:make", f"--data=folder:{folder}", "--threat=linf-4/255", f"--robustbench_list={path}")
    result = evaluate.main(["evaluate", "--suite=clean", *flags, "--robustbench_preprocessing=Crop288"])
    images, labels, indices = seen[0].arrays()
    assert images.shape == (3, 288, 288, 3) and list(labels) == [2, 1, 3] and list(indices) == [0, 1, 2]
    assert result["split"].startswith("RobustBench's list, Crop288") and seen[0].dataset == "imagenet"


def test_an_entry_is_written_beside_the_result_where_an_id_is_given(result, tmp_path):
    options = {"robustbench_id": "Me2026", "robustbench_authors": "A. Author", "autoattack_images": True}
    context = suites.Context(
        lambda x: x, list, "linf", 4 / 255, workdir=tmp_path, dataset="tfds:cifar10", options=options
    )
    leaderboard.check(context, "standard")
    written = leaderboard.write(context, result)
    assert written == tmp_path / "robustbench" / "cifar10" / "Linf" / "Me2026.json"
    form = json.loads(written.read_text())
    assert form["authors"] == "A. Author" and form["autoattack_acc"] == "50.00" and "4 points" in form["footnote"]
    assert leaderboard.write(context, dataclasses.replace(result, version="quick")) is None
    named = {"tfds:cifar10:3.0.2": "cifar10", "tfds:imagenet2012": "imagenet", "huggingface:x/cifar-100": "cifar100"}
    for data, dataset in named.items():
        assert leaderboard.write(dataclasses.replace(context, dataset=data), result).parent.parent.name == dataset
    with pytest.raises(ValueError, match="autoattack_version = 'plus': must be 'standard'"):
        leaderboard.check(context, "plus")
    with pytest.raises(
        ValueError, match="given as one of cifar10, cifar100, imagenet, as the data \\(digits\\) do not"
    ):
        leaderboard.check(dataclasses.replace(context, dataset="digits"), "standard")

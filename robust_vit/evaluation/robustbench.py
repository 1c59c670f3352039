"""Exchange with RobustBench: its ImageNet subset and preprocessing, its JSON form of a result, adversarial images as
npz.

RobustBench's ImageNet figures are of 5000 validation images that a list file names, in that order
(`robustbench/helper_files/imagenet_test_image_ids.txt` of its repository; the file is not ours to ship, so the user
points to it and its hash is checked). CIFAR figures are of the whole test set.

Reference: Croce et al., RobustBench: a standardized adversarial robustness benchmark, 2021
(https://arxiv.org/abs/2010.09670); https://github.com/RobustBench/robustbench.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robust_vit import errors
from robust_vit.data import host
from robust_vit.evaluation.autoattack.results import Result
from robust_vit.typing import Source

LIST_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# The string fields of an entry that only its author knows.
AUTHOR_FIELDS = ("link", "name", "authors", "venue", "architecture")


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """Cuts the central size x size without resizing; what lies outside a smaller image is black, as in torchvision."""

    size: int

    def __call__(self, image: host.HostImage, rng: np.random.Generator | None = None) -> host.HostImage:
        pixels = host.as_array(image)
        missing = [max(0, self.size - side) for side in pixels.shape[:2]]
        pixels = np.pad(pixels, [(m // 2, (m + 1) // 2) for m in missing] + [(0, 0)])
        top, left = (int(round((side - self.size) / 2.0)) for side in pixels.shape[:2])
        return host.crop(pixels, top, left, self.size, self.size)


# By RobustBench's names. Its Res224 is a bare Resize(224), which only square images survive as a batch; the crop
# makes it whole.
PREPROCESSINGS: dict[str, host.Transform] = {
    "Res256Crop224": host.ResizeCentreCrop(224, 0.875, "bilinear"),
    "BicubicRes256Crop224": host.ResizeCentreCrop(224, 0.875, "bicubic"),
    "Res224": host.ResizeCentreCrop(224, 1.0, "bilinear"),
    "BicubicRes224": host.ResizeCentreCrop(224, 1.0, "bicubic"),  # the XCiT models: timm's default for them
    "Crop288": CentreCrop(288),
}


def read_list(path: str | os.PathLike[str], sha256: str | None = LIST_SHA256) -> list[str]:
    """Reads the list of images, `n01440764/ILSVRC2012_val_00009111.JPEG` a line, in order.

    Args:
      path: the list file.
      sha256: what the file must hash to; None accepts any list.

    Raises:
      ValueError: if the file is missing, is another file, or has a line of another form.
    """
    path = pathlib.Path(path)
    errors.check("list", str(path), path.is_file(), "the file imagenet_test_image_ids.txt of RobustBench")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    errors.check(
        "list", f"{path} (sha256 {found[:12]}…)", sha256 in (None, found), f"the file of sha256 {str(sha256)[:12]}…"
    )
    lines = content.decode().split()
    for line in lines:
        errors.check("list", line, line.count("/") == 1, "lines of <class>/<file>")
    return lines


class Subset:
    """The images of a list, preprocessed: a `Source` of uint8 images in the order of the list.

    Args:
      list_path: the list file.
      folder: ImageNet's validation images in class folders (all 1000 of them: labels are places in their sorted order).
      preprocessing: a name of `PREPROCESSINGS`, or any transform of `data.host`.
      examples: how many of the first images to take.
      sha256: of the list file; None accepts any.

    Raises:
      ValueError: if the list is another one, more examples are asked for than it has, or images are missing.
    """

    channels = 3

    def __init__(
        self,
        list_path: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        preprocessing: str | host.Transform = "Res256Crop224",
        examples: int | None = None,
        sha256: str | None = LIST_SHA256,
    ):
        names = read_list(list_path, sha256)
        count = len(names) if examples is None else examples
        errors.check(
            "examples", examples, 1 <= count <= len(names), f"between 1 and {len(names)}, the length of the list"
        )
        self.folder, self.files = pathlib.Path(folder), names[:count]
        errors.check("folder", str(folder), self.folder.is_dir(), "the folder of ImageNet's validation images")
        classes = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        self.label_of = {name: label for label, name in enumerate(classes)}
        self.num_classes = len(classes)
        missing = [name for name in self.files if not (self.folder / name).is_file()]
        errors.check(
            "folder", f"{folder} (lacks {missing[:1]})", not missing, f"complete; {len(missing)} images are missing"
        )
        known = isinstance(preprocessing, str)
        self.transform = errors.lookup("preprocessing", preprocessing, PREPROCESSINGS) if known else preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.files[index]
        image = host.load(host.decode((self.folder / name).read_bytes(), orientation=False).convert("RGB"))
        return {"image": host.as_array(self.transform(image, None), 3), "label": self.label_of[name.split("/")[0]]}

    def identify(self, index: int) -> str:
        """The file of an example, for messages."""
        return str(self.folder / self.files[index])


def arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All images [N,H,W,C] uint8 (0.75 GB for 5000 of 224 x 224) and labels [N] of a source, as `autoattack` takes
    them.
    """
    first = np.asarray(source[0]["image"])
    images, labels = np.empty((len(source), *first.shape), np.uint8), np.empty(len(source), np.int32)
    for index in range(len(source)):
        example = source[index]
        images[index], labels[index] = example["image"], example["label"]
    return images, labels


def entry(
    result: Result,
    *,
    dataset: str,
    additional_data: bool = False,
    number_forward_passes: int = 1,
    reported: float | None = None,
    external: float | None = None,
    **author: str,
) -> dict[str, Any]:
    """The result in the form of RobustBench's `model_info/<dataset>/<threat>/<id>.json`.

    Args:
      result: of version "standard": the benchmark takes no other.
      dataset: "cifar10", "cifar100" or "imagenet".
      additional_data: whether the model saw data beyond the dataset's training set.
      number_forward_passes: a prediction takes.
      reported: robust accuracy in the paper, in [0,1]; the evaluated one if None.
      external: a lower robust accuracy found by another attack, in [0,1].
      **author: `AUTHOR_FIELDS`; those not given are left empty. `footnote` is allowed.

    Raises:
      ValueError: for another version, radii that differ between points, or an unknown field.
    """
    errors.check("version", result.version, result.version == "standard", "'standard', the one that RobustBench lists")
    errors.check("epsilon", "one a point", len(np.unique(result.epsilon)) == 1, "the same for all points")
    for name in author:
        errors.lookup("field", name, dict.fromkeys((*AUTHOR_FIELDS, "footnote")))
    robust = _percent(result.robust_accuracy)
    form: dict[str, Any] = {field: author.get(field, "") for field in AUTHOR_FIELDS}
    form |= {
        "dataset": dataset,
        "eps": _radius(float(result.epsilon[0]), result.norm),
        "clean_acc": _percent(result.clean_accuracy),
        "reported": robust if reported is None else _percent(reported),
        "autoattack_acc": robust,
        "additional_data": additional_data,
        "unreliable": False,
        "number_forward_passes": number_forward_passes,
    }
    if external is not None:
        form["external"] = _percent(external)
    return form | {name: value for name, value in author.items() if name == "footnote"}


def write_entry(folder: str | os.PathLike[str], model_id: str, norm: str, form: Mapping[str, Any]) -> pathlib.Path:
    """Writes an entry to `<folder>/<dataset>/<threat>/<id>.json` and returns the path."""
    path = pathlib.Path(folder) / form["dataset"] / THREATS[norm] / f"{model_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(form, indent=2) + "\n")
    return path


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _radius(epsilon: float, norm: str) -> str:
    """ "4/255" for Linf where it is one, a decimal number elsewhere."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if norm == "linf" and abs(levels - round(levels)) < 1e-4 else f"{epsilon:.6g}"


def save_adversarial(path: str | os.PathLike[str], result: Result, labels: np.ndarray) -> None:
    """Writes the images, clean ones where nothing broke the point, with what they claim.

    Args:
      path: an .npz file: adversarial [N,H,W,C] float32, labels, indices, robust, epsilon, norm, weights (the hash).
      result: the evaluation.
      labels: [N].
    """
    np.savez(
        path,
        adversarial=result.adversarial,
        labels=np.asarray(labels),
        indices=result.indices,
        robust=result.robust,
        epsilon=result.epsilon,
        norm=result.norm,
        weights=result.header["weights"],
    )

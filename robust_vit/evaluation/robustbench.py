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
import os
import pathlib
from typing import Any

import numpy as np

from robust_vit import errors
from robust_vit.data import decoding, host
from robust_vit.evaluation.leaderboard import entry, save_adversarial, write_entry  # noqa: F401  all under one name
from robust_vit.typing import Source

LIST_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"


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
        classes = sorted(found.name for found in os.scandir(self.folder) if found.is_dir())
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
        image = decoding.load(decoding.decode((self.folder / name).read_bytes(), orientation=False).convert("RGB"))
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

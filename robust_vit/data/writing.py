"""Arrays to an .npz file that `npz` reads: images as they come, never all in memory."""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np

from robust_vit.errors import check

Columns = dict[str, np.ndarray]  # name -> [n], one value an image


def write_npz(path: str | os.PathLike[str], count: int, images: Iterable[tuple[np.ndarray, Columns]]) -> None:
    """Writes `image` and the columns, uncompressed, in one step: a kill leaves the folder as it was.

    Args:
      path: the file; its folder is made if needed.
      count: how many images there will be.
      images: parts, each images uint8 [n,H,W,C] of one shape and the columns of these.

    Raises:
      ValueError: if there are more or fewer images than `count`, or none.
      OSError: as the system says it; nothing is left of the file then.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, column in _write_images(archive, count, images).items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, column, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def _write_images(archive: zipfile.ZipFile, count: int, images: Iterable[tuple[np.ndarray, Columns]]) -> Columns:
    """Writes the member `image`, and returns the columns joined."""
    found: dict[str, list[np.ndarray]] = {}
    written = 0
    with archive.open("image.npy", "w", force_zip64=True) as member:
        for part, columns in images:
            if not written:
                header = np.lib.format.header_data_from_array_1_0(part) | {"shape": (count, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(member, header)
            member.write(np.ascontiguousarray(part).tobytes())
            written += len(part)
            for name, column in columns.items():
                found.setdefault(name, []).append(column)
    check("images written", written, written == count > 0, f"{count}, and at least 1")
    return {name: np.concatenate(parts) for name, parts in found.items()}

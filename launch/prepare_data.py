"""Prepare a TensorFlow Datasets set once, as array_record, so that training reads it without TensorFlow.

    pip install tensorflow tensorflow-datasets
    python launch/prepare_data.py imagenet2012:5.1.0 --data_dir=/data/tfds --manual_dir=/data/archives

TensorFlow is needed here and nowhere else. ImageNet's archives, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
must be fetched by hand from image-net.org: see its page in the catalogue.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
    """Downloads (or reads from `manual_dir`) and writes a set as array_record; returns its folder.

    Raises:
      ValueError: one line, if TFDS knows no such set, lacks its archives, or cannot write it.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except tfds.core.registered.DatasetNotFoundError:
        known = "a set of the catalogue, https://www.tensorflow.org/datasets/catalog"
        raise ValueError(f"name = {name!r}: must be {known}") from None
    except ImportError as error:
        raise ValueError(f"{_line(error)}; needed here alone: pip install tensorflow tensorflow-datasets") from error
    except (AssertionError, OSError, ValueError, RuntimeError) as error:  # archives that are missing, a full disk, ...
        raise ValueError(f"{name}: {_line(error)}") from error
    return pathlib.Path(builder.data_dir)


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:400]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="such as imagenet2012:5.1.0 or cifar10")
    parser.add_argument("--data_dir", help="where prepared sets are kept; TFDS's own folder by default")
    parser.add_argument("--manual_dir", help="where archives fetched by hand are")
    given = parser.parse_args(arguments)
    try:
        written = prepare(given.name, given.data_dir, given.manual_dir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    where = f" --config.data.options.data_dir={given.data_dir}" if given.data_dir else ""
    print(f"{written} is prepared; read it with --data=tfds:{given.name}{where}")


if __name__ == "__main__":
    main()

"""Prepare a TensorFlow Datasets set once, as array_record, so that training reads it without TensorFlow.

    pip install tensorflow tensorflow-datasets
    python launch/prepare_data.py imagenet2012:5.1.0 --data_dir=/data/tfds --manual_dir=/data/archives

TensorFlow is needed here and nowhere else. ImageNet's archives must be fetched by hand: see its page in the catalogue.
"""

import argparse
import pathlib

import tensorflow_datasets as tfds


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
    """Downloads (or reads from `manual_dir`) and writes a set as array_record; returns its folder."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return pathlib.Path(builder.data_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="such as imagenet2012:5.1.0 or cifar10")
    parser.add_argument("--data_dir", help="where prepared sets are kept; TFDS's own folder by default")
    parser.add_argument("--manual_dir", help="where archives fetched by hand are")
    given = parser.parse_args()
    print(prepare(given.name, given.data_dir, given.manual_dir))

"""Prepare data once, as array_record, so that training reads it by random access and without TensorFlow.

A set of TensorFlow Datasets, where TensorFlow is installed (needed here and nowhere else):

    pip install tensorflow tensorflow-datasets
    python launch/prepare_data.py imagenet2012:5.1.0 --data_dir=/data/tfds --manual_dir=/data/archives

A tree of class folders, as ImageNet comes (train/n01440764/*.JPEG, val/...), without it:

    python launch/prepare_data.py --tree=/data/imagenet --name=imagenet --data_dir=/data/tfds --processes=16
    robust-vit train --data=tfds:imagenet:1.0.0 --config.data.options.data_dir=/data/tfds ...

Files are copied as they are, in a shuffled order that is the same everywhere, shard by shard in parallel. A shard is
there when it is whole: the same command goes on where it was stopped. Every shard is read back, and its images are held
by count and digest against those of the tree. `--dry-run` says what would be done. ImageNet's archives,
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, must be fetched by hand from image-net.org.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

EXTENSIONS = {".jpg", ".jpeg", ".png"}  # what TFDS's image feature reads
VERSION = "1.0.0"
PER_SHARD = 2048  # images


class Shard(NamedTuple):
    """A file to write.

    Attributes:
      path: of the file; beside it lies path + ".json", which says what is in it.
      files: of the images, in their order.
      labels: of each.
      classes: names of all classes.
    """

    path: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


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


# A tree ---------------------------------------------------------------------------------------------------------------


def plan(tree: pathlib.Path, folder: pathlib.Path, name: str, per_shard: int) -> dict[str, list[Shard]]:
    """Lists the shards of every part of a tree.

    Args:
      tree: holds train/, val/ or others, each with a folder of images a class; classes are those of train.
      folder: where shards go.
      name: of the set.
      per_shard: images of each, about.

    Raises:
      ValueError: for a tree of another form, a class that train does not have, or a file that is no image by its name.
    """
    parts = sorted(path.name for path in tree.iterdir() if path.is_dir()) if tree.is_dir() else []
    if "train" not in parts:
        raise ValueError(f"tree = {str(tree)!r}: must hold train/<class>/*.jpg, and the same for val/ or test/")
    classes = tuple(sorted(path.name for path in (tree / "train").iterdir() if path.is_dir()))
    number = {name: i for i, name in enumerate(classes)}
    planned = {}
    for part in parts:
        files = sorted(path for path in (tree / part).rglob("*") if path.is_file())
        for path in files:
            if path.suffix.lower() not in EXTENSIONS or path.parent.parent != tree / part:
                raise ValueError(f"{path}: must be <class>/*.jpg or .png in {tree / part}")
            if path.parent.name not in number:
                raise ValueError(f"{path}: must be of a class that train/ has")
        if not files:
            raise ValueError(f"{tree / part}: must hold images")
        files.sort(key=lambda path: hashlib.sha256(path.relative_to(tree).as_posix().encode()).digest())
        count = max(1, round(len(files) / per_shard))
        ends = [len(files) * i // count for i in range(count + 1)]
        planned[part] = [
            Shard(
                str(folder / f"{name}-{part}.array_record-{i:05d}-of-{count:05d}"),
                tuple(map(str, files[begin:end])),
                tuple(number[path.parent.name] for path in files[begin:end]),
                classes,
            )
            for i, (begin, end) in enumerate(zip(ends, ends[1:]))
        ]
    return planned


def features(classes: Sequence[str]) -> Any:
    """What a record holds."""
    label = tfds.features.ClassLabel(names=list(classes))
    return tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "label": label})


def write(shard: Shard) -> dict[str, Any]:
    """Writes a shard, unless it is there, and reads it back; returns what is in it.

    Raises:
      ValueError: one line, if an image cannot be read, or what is read back is not what the tree holds.
    """
    from array_record.python import array_record_module

    path, note = pathlib.Path(shard.path), pathlib.Path(shard.path + ".json")
    if path.is_file() and note.is_file():
        known = json.loads(note.read_text())
        if known["names"] == _names(shard) and known["file_bytes"] == path.stat().st_size:
            return known
    feature, partial = features(shard.classes), path.with_name(f".{path.name}.{os.getpid()}")
    written, size = hashlib.sha256(), 0
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for file, label in zip(shard.files, shard.labels):
            content = pathlib.Path(file).read_bytes()
            record = feature.serialize_example(feature.encode_example({"image": io.BytesIO(content), "label": label}))
            writer.write(record)
            written.update(hashlib.sha256(record).digest())
            size += len(record)
    finally:
        writer.close()
    if _digest(partial, len(shard.files)) != written.hexdigest():
        partial.unlink()
        raise ValueError(f"{path}: what is read back is not what was written; is the disk sound?")
    found = {"examples": len(shard.files), "bytes": size, "file_bytes": partial.stat().st_size}
    found |= {"names": _names(shard), "sha256": written.hexdigest()}
    partial.replace(path)
    note.write_text(json.dumps(found))
    return found


def _names(shard: Shard) -> str:
    """A digest of which files are in a shard, of which sizes and labels."""
    rows = [f"{file}:{os.path.getsize(file)}:{label}" for file, label in zip(shard.files, shard.labels)]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _digest(path: pathlib.Path, count: int) -> str:
    """A digest of the records of a file, in their order; "" where they are more or fewer."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    total = hashlib.sha256()
    try:
        if reader.num_records() != count:
            return ""
        for start in range(0, count, 64):
            for record in reader.read(start, min(count, start + 64)):
                total.update(hashlib.sha256(record).digest())
    finally:
        reader.close()
    return total.hexdigest()


def prepare_tree(tree: pathlib.Path, data_dir: pathlib.Path, name: str, processes: int, per_shard: int) -> pathlib.Path:
    """Writes a tree of class folders as a TFDS set of array_record; returns its folder.

    Raises:
      ValueError: as `plan` and `write`.
    """
    folder = data_dir / name / VERSION
    planned = plan(tree, folder, name, per_shard)
    folder.mkdir(parents=True, exist_ok=True)
    splits = []
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        for part, shards in planned.items():
            found = list(_watched(pool.map(write, shards), part, len(shards)))
            count = sum(one["examples"] for one in found)
            if count != sum(len(shard.files) for shard in shards):
                raise ValueError(f"{part}: {count} images written; start over in an empty folder")
            splits.append((part, [one["examples"] for one in found], sum(one["bytes"] for one in found)))
    _describe(folder, name, splits, next(iter(planned.values()))[0].classes)
    return folder


def _watched(found: Iterable[dict[str, Any]], part: str, count: int) -> Iterable[dict[str, Any]]:
    for number, one in enumerate(found, 1):
        print(f"{part}: shard {number} of {count}, {one['examples']} images, sha256 {one['sha256'][:12]}", flush=True)
        yield one


def _describe(
    folder: pathlib.Path, name: str, splits: list[tuple[str, list[int], int]], classes: Sequence[str]
) -> None:
    """Writes what TFDS wants to know of a set."""
    template = functools.partial(
        tfds.core.ShardedFileTemplate, data_dir=folder, dataset_name=name, filetype_suffix="array_record"
    )
    infos = [
        tfds.core.SplitInfo(name=part, shard_lengths=lengths, num_bytes=size, filename_template=template(split=part))
        for part, lengths, size in splits
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features(classes), split_infos=infos, version=VERSION, check_data=False,
        filename_template=template(), supervised_keys=("image", "label"),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", help="of TFDS, such as imagenet2012:5.1.0 or cifar10")
    parser.add_argument("--data_dir", help="where prepared sets are kept; TFDS's own folder by default")
    parser.add_argument("--manual_dir", help="where archives fetched by hand are")
    parser.add_argument("--tree", type=pathlib.Path, help="class folders to prepare in place of a set")
    parser.add_argument("--name", help="of the set that the tree becomes")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that write shards of a tree")
    parser.add_argument("--per_shard", type=int, default=PER_SHARD, help="images of a shard, about")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    given = parser.parse_args(arguments)
    try:
        work(given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {_line(error)}")


def work(given: argparse.Namespace) -> None:
    """Does what the command line asks for.

    Raises:
      ValueError: in one line.
    """
    if (given.set is None) == (given.tree is None):
        raise ValueError("set, --tree: one of the two must be given")
    where = f" --config.data.options.data_dir={given.data_dir}" if given.data_dir else ""
    if given.tree is None:
        if given.dry_run:
            return print(f"would prepare {given.set} as array_record in {given.data_dir or 'the TFDS folder'}")
        written, name = prepare(given.set, given.data_dir, given.manual_dir), given.set
    else:
        for field, least in (("processes", 1), ("per_shard", 1)):
            if getattr(given, field) < least:
                raise ValueError(f"{field} = {getattr(given, field)}: must be at least {least}")
        if not (given.name and given.data_dir and given.name.isidentifier()):
            raise ValueError(
                f"name = {given.name!r}: must be given with --tree, a word such as imagenet, and --data_dir"
            )
        root, name = pathlib.Path(given.data_dir).expanduser(), f"{given.name}:{VERSION}"
        if given.dry_run:
            for part, shards in plan(given.tree, root / given.name / VERSION, given.name, given.per_shard).items():
                print(f"would write {sum(len(s.files) for s in shards)} images of {part} in {len(shards)} shards")
            return
        written = prepare_tree(given.tree, root, given.name, given.processes, given.per_shard)
    print(f"{written} is prepared; read it with --data=tfds:{name}{where}")


if __name__ == "__main__":
    main()

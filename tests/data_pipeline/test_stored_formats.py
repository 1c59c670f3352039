"""The real formats on a real disk: JPEG folders with damaged files, mapped .npz, array_record through TFDS, parquet."""

import io
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from robust_vit import data
from robust_vit.data import arrays, catalogue, host, pipeline, sources
from robust_vit.data.huggingface import HuggingfaceSource

CROP = host.build(["resize_centre_crop(16)"])


def jpeg(seed, form="JPEG", size=(24, 20)):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def imagenet(tmp_path):
    """Three classes; in train a truncated JPEG, a text that calls itself PNG, a hidden file and a note."""
    for part, count in {"train": 6, "val": 2}.items():
        for label, name in enumerate(["n02", "n01", "n10"]):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                suffix, form = [("JPEG", "JPEG"), ("png", "PNG"), ("webp", "WEBP")][i % 3]
                (folder / f"{name}_{i}.{suffix}").write_bytes(jpeg(100 * label + i, form))
    (tmp_path / "train/n01/n01_0.JPEG").write_bytes(jpeg(1)[:300])
    (tmp_path / "train/n10/n10_1.png").write_text("not an image")
    (tmp_path / "train/n10/.hidden.png").write_text("resource fork")
    (tmp_path / "train/n10/notes.txt").write_text("read me")
    return tmp_path


def test_folder_numbers_sorted_classes_and_tells_its_files(imagenet):
    train = sources.build("folder", "train", path=str(imagenet), validation_examples=1).source
    assert (train.num_classes, len(train), train.class_names) == (3, 18, ("n01", "n02", "n10"))
    assert train.identify(0) == str(imagenet / "train/n01/n01_0.JPEG")
    assert [train[i]["label"] for i in (0, 6, 17)] == [0, 1, 2]
    assert train[5]["image"] == (imagenet / "train/n01/n01_5.webp").read_bytes()
    test = pickle.loads(pickle.dumps(sources.build("folder", "test", path=str(imagenet))))
    assert len(test) == 6 and test.identify(5) == str(imagenet / "val/n10/n10_1.png")


def test_folder_labels_follow_train_when_a_class_is_missing_elsewhere(imagenet):
    for file in (imagenet / "val/n01").iterdir():
        file.unlink()
    (imagenet / "val/n01").rmdir()
    test = sources.build("folder", "test", path=str(imagenet))
    assert [test[i]["label"] for i in range(4)] == [1, 1, 2, 2] and test.num_classes == 3
    (imagenet / "val/n99").mkdir()
    with pytest.raises(ValueError, match="class folders of .*n99"):
        sources.build("folder", "test", path=str(imagenet))


def test_a_bad_image_stops_training_with_its_name(imagenet):
    train = sources.build("folder", "train", path=str(imagenet), validation_examples=1).source
    with pytest.raises(ValueError, match=r"(n01_0.JPEG|n10_1.png): bad image .*on_bad_image='skip'"):
        batches = pipeline.train(train, batch_size=18, seed=0, transforms=CROP)
        try:
            next(batches)
        finally:
            batches.close()
    with pytest.raises(ValueError, match=r"n01_0.JPEG: bad image .*on_bad_image='skip'"):
        list(pipeline.evaluate(train, batch_size=18, transforms=CROP))


def test_skipped_images_are_replaced_counted_and_repeatable(imagenet):
    train = sources.build("folder", "train", path=str(imagenet), validation_examples=1).source
    keywords = {"batch_size": 6, "seed": 0, "transforms": host.build(["random_resized_crop(16)", "flip"])}
    batches = pipeline.train(train, on_bad_image="skip", **keywords)
    first = [next(batches) for _ in range(6)]  # two epochs
    indices = np.concatenate([batch["index"] for batch in first])
    expected = np.full(18, 2)
    expected[[0, 13]], expected[[1, 14]] = 0, 4  # the next good file takes the place of a bad one
    assert np.bincount(indices, minlength=18).tolist() == expected.tolist()
    assert sorted(batches.bad.names) == [str(imagenet / "train/n01/n01_0.JPEG"), str(imagenet / "train/n10/n10_1.png")]
    assert batches.bad.count == 4 and str(batches.bad).startswith("2 bad images: ")
    batches.set_state({"step": 2})
    again = [next(batches) for _ in range(4)]
    batches.close()
    for a, b in zip(first[2:], again):
        assert np.array_equal(a["image"], b["image"]) and np.array_equal(a["index"], b["index"])


def test_evaluation_masks_and_counts_bad_images(imagenet):
    train = sources.build("folder", "train", path=str(imagenet), validation_examples=1).source
    batches = pipeline.evaluate(train, batch_size=8, transforms=CROP, on_bad_image="skip")
    for _ in range(2):  # the count is of one pass
        seen = list(batches)
        masks, indices = (np.concatenate([b[k] for b in seen]) for k in ("mask", "index"))
        assert sorted(indices[masks]) == [i for i in range(18) if i not in (0, 13)]
        assert batches.bad.count == 2 and len(batches.bad.names) == 2
    assert str(pipeline.BadImages()) == "no bad images"


def test_a_missing_file_is_an_error_even_when_bad_images_may_be_skipped(imagenet):
    train = sources.build("folder", "train", path=str(imagenet), validation_examples=1).source
    (imagenet / "train/n02/n02_0.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="n02_0.JPEG"):
        list(pipeline.evaluate(train, batch_size=8, transforms=CROP, on_bad_image="skip"))


def test_nothing_but_bad_images_ends_with_a_name(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"x")
    source = sources.build("folder", "train", path=str(tmp_path), validation_examples=1)
    batches = pipeline.train(source, batch_size=2, seed=0, on_bad_image="skip")
    with pytest.raises(ValueError, match="bad images in a row"):
        next(batches)
    batches.close()
    with pytest.raises(ValueError, match="no good image among"):
        pipeline.evaluate(source, batch_size=2, on_bad_image="skip")


def test_empty_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="data.options.train_split = None: must be stored; there are no parts"):
        sources.build("folder", "train", path=str(tmp_path))
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="images in .*at least one"):
        sources.build("folder", "test", path=str(tmp_path))


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays_of = {}
    for part, count in {"train": 40, "test": 10}.items():
        arrays_of[part] = (rng.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8), np.arange(count) % 7)
        np.savez(tmp_path / f"{part}.npz", label=arrays_of[part][1], image=arrays_of[part][0])
    return tmp_path, arrays_of


def test_npz_is_mapped_and_pickles_as_its_path(npz):
    path, stored = npz
    test = sources.build("npz", "test", path=str(path))
    assert isinstance(test.images, np.memmap) and not test.images.flags.writeable
    copy = pickle.loads(pickle.dumps(test))
    assert isinstance(copy.images, np.memmap) and len(pickle.dumps(test)) < 400
    for i in range(10):
        assert np.array_equal(copy[i]["image"], stored["test"][0][i]) and copy[i]["label"] == i % 7
    assert test.num_classes == 7 and test.channels == 3
    for part, count in {"train": 36, "validation": 4}.items():
        assert len(sources.build("npz", part, path=str(path), validation_examples=4)) == count


def test_npz_grey_images_gain_a_channel_and_fortran_order_is_read(tmp_path):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (6, 3, 4), dtype=np.uint8))
    np.savez(tmp_path / "test.npz", x=images, y=np.arange(6))
    test = sources.build("npz", "test", path=str(tmp_path), image_key="x", label_key="y")
    assert np.array_equal(test[4]["image"][..., 0], images[4])


@pytest.mark.parametrize(
    "stored, message",
    [
        ({"image": np.zeros((2, 3, 3, 1)), "label": np.zeros(2, int)}, ":image = 'float64': must be uint8"),
        ({"image": np.zeros((2, 3), np.uint8), "label": np.zeros(2, int)}, r":image = \(2, 3\): must be of shape"),
        ({"image": np.zeros((2, 3, 3), np.uint8), "label": np.zeros(3, int)}, r":label = \(3,\): must be \[2\]"),
        ({"image": np.zeros((2, 3, 3), np.uint8), "label": np.zeros(2)}, ":label = 'float64': must be integers"),
        ({"pixels": np.zeros((2, 3, 3), np.uint8), "label": np.zeros(2, int)}, "'image': must be one of pixels, label"),
        ({"image": np.zeros((2, 3, 3), np.uint8), "label": np.array([0, -1])}, ":label = -1: must be at least 0"),
    ],
)
def test_npz_that_does_not_fit_is_named(tmp_path, stored, message):
    np.savez(tmp_path / "test.npz", **stored)
    with pytest.raises(ValueError, match=message):
        sources.build("npz", "test", path=str(tmp_path))


def test_compressed_npz_is_refused_with_the_remedy(tmp_path):
    np.savez_compressed(tmp_path / "test.npz", image=np.zeros((2, 3, 3), np.uint8), label=np.zeros(2, int))
    with pytest.raises(ValueError, match="uncompressed to be mapped: write it with np.savez"):
        arrays.MappedSource(tmp_path / "test.npz", "image", "label")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS set prepared as array_record, without TensorFlow: images given as encoded bytes."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=4)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 30), "validation": self._generate_examples(30, 6)}

        def _generate_examples(self, start, count):
            for i in range(start, start + count):
                yield i, {"image": io.BytesIO(jpeg(i)), "label": i % 4}

    folder = tmp_path_factory.mktemp("tfds")
    Shapes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_reads_array_record_without_tensorflow(prepared):
    options = {"dataset": "shapes:1.0.0", "data_dir": str(prepared), "validation_examples": 5}
    dataset = data.build("tfds", evaluation_transforms=CROP, **options)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [25, 5, 6]  # validation serves as test
    assert dataset.num_classes == 4 and dataset.image_shape == (16, 16, 3)
    originals = {jpeg(i): i for i in range(36)}
    parts = [dataset.train, dataset.validation, dataset.test]
    found = [originals[part[i]["image"]] for part in parts for i in range(len(part))]
    assert sorted(found) == list(range(36)) and sorted(found[-6:]) == list(range(30, 36))
    example = pickle.loads(pickle.dumps(dataset.test))[2]
    assert originals[example["image"]] % 4 == example["label"]
    (batch,) = pipeline.evaluate(dataset.test, batch_size=6, transforms=CROP)
    assert batch["image"].shape == (6, 16, 16, 3) and batch["mask"].all()
    assert "tensorflow" not in sys.modules


def test_tfds_tells_classes_and_digests(prepared, tmp_path):
    options = {"dataset": "shapes:1.0.0", "validation_examples": 5}
    dataset = data.build("tfds", data_dir=str(prepared), evaluation_transforms=CROP, train_transforms=CROP, **options)
    dataset.check()
    assert dataset.class_names == ("0", "1", "2", "3")
    described = dataset.description()["splits"]
    assert described["test"]["origin"] == "part 'validation'" and described["test"]["examples"] == 6
    shutil.copytree(prepared, tmp_path / "moved")
    assert data.build("tfds", data_dir=str(tmp_path / "moved"), **options).digests() == dataset.digests()
    info = tmp_path / "moved/shapes/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"30"', '"29"'))
    changed = data.build("tfds", data_dir=str(tmp_path / "moved"), **options).digests()
    assert [split for split in changed if changed[split] != dataset.digests()[split]] == ["train", "validation"]


def test_tfds_says_what_is_missing(prepared):
    with pytest.raises(ValueError, match="data.options.dataset = 'shape': must be prepared as array_record in"):
        sources.build("tfds", "train", dataset="shape", data_dir=str(prepared))
    with pytest.raises(ValueError, match="data.options.image_key = 'img': must be one of image, label"):
        sources.build("tfds", "train", dataset="shapes", data_dir=str(prepared), image_key="img")


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets", reason="needs .[huggingface]")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=4), "id": datasets.Value("int64")}
    )
    rows = {
        "img": [{"bytes": jpeg(i), "path": None} for i in range(12)],
        "label": [i % 4 for i in range(12)],
        "id": list(range(12)),
    }
    return datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(rows, features=features),
            "test": datasets.Dataset.from_dict({k: v[:4] for k, v in rows.items()}, features=features),
        }
    )


@pytest.mark.parametrize("form", ["disk", "parquet", "file"])
def test_huggingface_reads_local_forms(table, form, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "set"
    if form == "disk":
        table.save_to_disk(path)
    else:
        path.mkdir()
        for part in table:
            table[part].to_parquet(path / f"{part}-00000-of-00001.parquet")
        path = path / "train-00000-of-00001.parquet" if form == "file" else path
    options = {"path": str(path), "cache_dir": str(tmp_path / "cache"), "validation_examples": 2}
    dataset = data.build("huggingface", evaluation_transforms=CROP, **options)
    assert (len(dataset.train), len(dataset.validation), dataset.num_classes) == (10, 2, 4)
    assert dataset.image_shape == (16, 16, 3)
    if form == "file":
        with pytest.raises(ValueError, match="data.options.test_split = None"):
            _ = dataset.test
    else:
        test = pickle.loads(pickle.dumps(dataset.test))
        assert [test[i] for i in range(4)] == [{"image": jpeg(i), "label": i} for i in range(4)]
    with pytest.raises(ValueError, match="data.options.image_key = 'picture': must be one of img, label, id"):
        sources.build("huggingface", "train", image_key="picture", **options)


def test_huggingface_tells_classes_and_digests(table, tmp_path):
    def saved(name, changes=None):
        table_of = type(table)(table | (changes or {}))
        table_of.save_to_disk(tmp_path / name)
        options = {"path": str(tmp_path / name), "validation_examples": 2}
        return data.build("huggingface", evaluation_transforms=CROP, train_transforms=CROP, **options)

    dataset = saved("first")
    dataset.check()
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.description()["splits"]["test"]["origin"] == "part 'test'"
    before = dataset.digests()
    assert saved("copy").digests() == before  # wherever it lies, and whenever it was written
    test = table["test"]
    flipped = [3, 2, 1, 0]
    changes = {
        "shuffled": test.select(flipped),
        "fewer": test.select([0, 1, 2]),
        "relabelled": test.map(lambda row: {"label": (row["label"] + 1) % 4}),
        "recoded": test.map(lambda row, i: {"img": {"bytes": jpeg(i + 50), "path": None}}, with_indices=True),
    }
    for name, other in changes.items():
        after = saved(name, {"test": other}).digests()
        assert [split for split in after if after[split] != before[split]] == ["test"], name
    view = HuggingfaceSource(test.select(flipped), "view")  # read through a list of rows
    assert catalogue.digest(view) == saved("shuffled again", {"test": test.select(flipped)}).digests()["test"]
    assert catalogue.digest(view, np.array(flipped)) == before["test"]


def test_plain_parquet_needs_no_annotations(tmp_path):
    pytest.importorskip("datasets", reason="needs .[huggingface]")
    import pyarrow
    import pyarrow.parquet

    columns = {"image": [jpeg(i) for i in range(5)], "label": [0, 1, 2, 1, 0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    test = sources.build("huggingface", "test", path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert test.num_classes == 3 and test[3] == {"image": jpeg(3), "label": 1}


@pytest.mark.parametrize("labels", [["cat", "dog"], [0, None], [0.5, 1.5], [[0], [1]]])
def test_huggingface_labels_that_are_none_are_named(labels, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs .[huggingface]")
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(2)], "label": labels}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=":label = '.*': must be integers or a ClassLabel, none missing; class_encode"):
        data.build("huggingface", path=tmp_path).check("train")


def test_huggingface_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"data.name = 'huggingface' needs `pip install"):
        sources.build("huggingface", "train", path="anything")

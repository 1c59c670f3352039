"""Promise: own data are one word of the command line away; a tree without parts is split the same way everywhere."""

import pathlib
import re
import runpy

import numpy as np
import pytest
from PIL import Image

from robust_vit import data
from robust_vit.data import catalogue, folder, pipeline, splits


def tree(root, counts, parts=("",), start=0):
    """Class folders of tiny images, in each part."""
    for part in parts:
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(start, start + count):
                Image.new("RGB", (4, 4), (i % 256, 0, 0)).save(root / part / name / f"{i}.png")
    return root


# ---------------------------------------------------------------------------------------------------------- locations


@pytest.mark.parametrize(
    "location, expected",
    [
        ("digits", ("digits", {})),
        ("synthetic", ("synthetic", {})),
        ("folder:/pictures/cats and dogs", ("folder", {"path": "/pictures/cats and dogs"})),
        ("folder:relative", ("folder", {"path": "relative"})),
        ("npz:/arrays", ("npz", {"path": "/arrays"})),
        ("huggingface:ILSVRC/imagenet-1k", ("huggingface", {"path": "ILSVRC/imagenet-1k"})),
        ("tfds:imagenet2012:5.1.0", ("tfds", {"dataset": "imagenet2012:5.1.0"})),
        ("folder:~/x", ("folder", {"path": str(pathlib.Path("~/x").expanduser())})),
    ],
)
def test_a_location_is_a_name_and_its_options(location, expected):
    name, options = data.parse_location(location)
    assert (name, options) == expected
    data.build(name, **options)


@pytest.mark.parametrize(
    "location, message",
    [
        ("foldr:/x", r"data = 'foldr': must be one of .*did you mean 'folder'\?"),
        ("", "data = '': must be one of digits, folder"),
        ("folder", "data = 'folder': must be folder:PATH"),
        ("folder:", "data = 'folder:': must be folder:PATH"),
        ("tfds", "data = 'tfds': must be tfds:DATASET"),
        ("digits:/x", "data = 'digits:/x': must be 'digits' alone"),
    ],
)
def test_a_wrong_location_says_what_is_allowed(location, message):
    with pytest.raises(ValueError, match=message) as error:
        data.parse_location(location)
    assert "\n" not in str(error.value)


def test_a_bare_path_is_asked_for_its_kind(tmp_path):
    for kind in ("folder", "npz", "huggingface"):
        path = tmp_path / kind
        path.mkdir()
        if kind == "npz":
            np.savez(path / "train.npz", image=np.zeros(1))
        path = path / "set.parquet" if kind == "huggingface" else path
        path.touch()
        with pytest.raises(ValueError, match=re.escape(f"did you mean '{kind}:{path}'?")):
            data.parse_location(str(path))


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("name", data.names())
def test_options_are_listed_with_types_and_defaults(name):
    options, types = data.options(name), data.option_types(name)
    assert list(options) == list(types)
    for option, default in options.items():
        assert re.fullmatch(r"(str|int|float|bool)( \| None)?", types[option])
        assert default is data.REQUIRED or ("None" if default is None else type(default).__name__) in types[option]
    assert repr(data.REQUIRED) == "required"


def test_the_options_of_a_folder():
    options = data.options("folder")
    assert options["path"] is data.REQUIRED and options["validation_fraction"] == 0.05
    assert options["test_fraction"] is None and data.option_types("folder")["test_fraction"] == "float | None"
    assert data.options("digits") == {} and data.options("synthetic")["size"] == 32
    with pytest.raises(ValueError, match="data.name = 'foldr'"):
        data.options("foldr")


def test_options_of_the_wrong_type_are_named():
    for name, option, value, kind in [
        ("synthetic", "size", "abc", "int"),
        ("synthetic", "size", True, "int"),
        ("synthetic", "size", 8.5, "int"),
        ("folder", "path", 3, "str"),
        ("folder", "validation_fraction", "half", "float"),
    ]:
        options = {"path": "x"} if name == "folder" else {}
        with pytest.raises(ValueError, match=f"data.options.{option} = {value!r}: must be of type {kind}"):
            data.build(name, **(options | {option: value}))
    data.build("folder", path="x", test_fraction=1)  # an int is a float
    data.build("folder", path=pathlib.Path("x"), validation_examples=np.int64(3))


# -------------------------------------------------------------------------------------------------- trees without parts


def files(dataset):
    """The files of each split, as <class>/<file>."""
    return {
        split: {"/".join(pathlib.Path(catalogue.identify(source, i)).parts[-2:]) for i in range(len(source))}
        for split, source in ((split, dataset.split(split)) for split in splits.SPLITS)
    }


def test_a_flat_tree_is_split_completely_and_fits(tmp_path):
    dataset = data.build("folder", path=str(tree(tmp_path, {"dog": 40, "cat": 60})))
    dataset.check()
    found = files(dataset)
    assert {split: len(names) for split, names in found.items()} == {"train": 85, "validation": 5, "test": 10}
    assert len(set.union(*found.values())) == 100
    assert {name.split("/")[0] for name in found["test"]} == {"cat", "dog"} == set(dataset.class_names)
    assert sum(name.startswith("cat") for name in found["test"]) == 6  # class by class
    (batch,) = pipeline.evaluate(dataset.test, batch_size=10)
    assert batch["mask"].all()
    origin = dataset.description()["splits"]["test"]["origin"]
    assert "split class by class by the SHA-256 of <class>/<file>: 10 test and 5 validation examples of 100" in origin


def test_the_split_of_a_flat_tree_is_written_in_stone(tmp_path):
    """The first of each class in the order of `printf a/0.png | sha256sum`, two and one for test, then validation."""
    found = files(data.build("folder", path=str(tree(tmp_path, {"a": 8, "b": 4})), test_fraction=0.25))
    assert found["test"] == {"a/2.png", "a/0.png", "b/0.png"}
    assert found["validation"] == {"a/7.png"}


def test_fractions_and_numbers_are_options(tmp_path):
    path = str(tree(tmp_path, {"a": 30, "b": 10}))
    lengths = {}
    for options in ({"test_fraction": 0.5}, {"validation_fraction": 0.25}, {"validation_examples": 3}):
        found = files(data.build("folder", path=path, **options))
        lengths[next(iter(options))] = [len(found[split]) for split in splits.SPLITS]
    assert lengths == {
        "test_fraction": [18, 2, 20],
        "validation_fraction": [26, 10, 4],
        "validation_examples": [33, 3, 4],
    }
    for option, value in {"test_fraction": 1.5, "validation_fraction": 0, "validation_examples": 99}.items():
        with pytest.raises(ValueError, match=f"data.options.{option} = {value}"):
            data.build("folder", path=path, **{option: value}).check()


def test_a_class_of_few_images_is_trained_on(tmp_path):
    dataset = data.build("folder", path=str(tree(tmp_path, {"many": 30, "one": 1, "two": 2})), test_fraction=0.3)
    dataset.check()
    assert set(np.unique(dataset.train.labels)) == {0, 1, 2}


def test_a_tree_of_an_unknown_form_shows_the_expected_one(tmp_path):
    flat = tmp_path / "images"
    flat.mkdir()
    Image.new("RGB", (4, 4)).save(flat / "1.png")
    cases = {
        str(tmp_path / "nowhere"): "must be a folder with <class>/.* in train/ and in test/ or val/",
        str(flat): "there are no parts; .* should hold <class>/.* in train/",
        str(tree(tmp_path / "deep", {"a": 3, "b": 3}, ["Train", "Test"])): "to be split; .*Test/a/0.png.* lies deeper",
        str(tree(tmp_path / "one", {"a": 5})): "it has one class folder",
        str(tree(tmp_path / "part", {"a": 3, "b": 3}, ["train"])): "there are train; data.options.test_fraction=0.1",
        str(
            tree(tmp_path / "empty", {"a": 3, "b": 0})
        ): r"class folders of .* = \['b'\]: must be of at least one image",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            data.build("folder", path=path).check()
        assert "\n" not in str(error.value)


def test_named_parts_are_no_classes(tmp_path):
    path = str(tree(tmp_path, {"a": 3, "b": 3}, ["Train", "Test"]))
    dataset = data.build("folder", path=path, train_split="Train", test_split="Test", validation_examples=2)
    dataset.check()
    assert [len(dataset.split(split)) for split in splits.SPLITS] == [4, 2, 6]


def test_images_in_folders_below_a_class_are_found_in_a_part(tmp_path):
    """As Tiny ImageNet stores them: train/n01443537/images/*.JPEG."""
    tree(tmp_path, {"a/images": 3, "b/images": 3}, ["train", "test"])
    train = folder.FolderSource(tmp_path / "train", ["a", "b"])
    assert train.files.tolist() == [f"{c}/images/{i}.png".encode() for c in "ab" for i in range(3)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and train[3]["image"][:4] == b"\x89PNG"


# --------------------------------------------------------------------------------------- a test part that is not stored


def test_a_test_part_can_be_carved_where_none_is_stored(tmp_path):
    np.savez(tmp_path / "train.npz", image=np.zeros((40, 4, 4, 1), np.uint8), label=np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"there are train; data.options.test_fraction=0.1 splits one off train"):
        data.build("npz", path=str(tmp_path)).check()
    dataset = data.build("npz", path=str(tmp_path), test_fraction=0.25)
    dataset.check()
    parts = [dataset.split(split).indices for split in splits.SPLITS]
    assert [len(part) for part in parts] == [28, 2, 10]
    assert sorted(np.concatenate(parts)) == list(range(40))
    np.savez(tmp_path / "test.npz", image=np.zeros((4, 4, 4, 1), np.uint8), label=np.arange(4) % 2)
    with pytest.raises(ValueError, match="data.options.test_fraction = 0.25: must be left out: test is stored"):
        data.build("npz", path=str(tmp_path), test_fraction=0.25).check()


def test_a_stored_validation_part_stays_when_test_is_carved():
    def load(part):
        return data.sources.build("synthetic", "train", examples={"train": 40, "val": 8}[part], size=4)

    opened = {s: splits.open_split(s, ("train", "val"), load, test_fraction=0.1) for s in splits.SPLITS}
    assert {split: len(source) for split, source in opened.items()} == {"train": 36, "validation": 8, "test": 4}
    assert not set(opened["train"].indices) & set(opened["test"].indices)


def test_what_is_trained_on_is_no_test():
    with pytest.raises(ValueError, match="data.options.test_split = 'train': must be another part than the training"):
        splits.open_split("test", ("train", "val"), lambda part: None, test_split="train")
    with pytest.raises(ValueError, match="data.options.test_split = None: must be stored; there are val;"):
        splits.open_split("test", ("val",), lambda part: None, train_split="val")


# ------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_hugging_face_path_that_is_not_there_is_one_line(path):
    pytest.importorskip("datasets", reason="needs .[huggingface]")
    with pytest.raises(ValueError, match=r"data.options.path = .*must be a folder of save_to_disk.*no such file") as e:
        data.build("huggingface", path=path).check()
    assert "\n" not in str(e.value) and str(e.value).startswith("train split of huggingface: ")


def test_a_name_that_the_hub_does_not_have_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs .[huggingface]")

    def load_dataset(*arguments, **keywords):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'me/mine' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"name on the hub such as owner/name \(DatasetNotFoundError: Dataset 'me"
    ) as e:
        data.build("huggingface", path="me/mine").check()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", ["parquet", "disk", "folder"])
def test_a_damaged_hugging_face_set_is_one_line(damage, tmp_path):
    pytest.importorskip("datasets", reason="needs .[huggingface]")
    path = tmp_path / "set"
    path.mkdir()
    if damage == "parquet":
        path = path / "train.parquet"
        path.write_bytes(b"PAR1 and then nothing")
    elif damage == "disk":
        (path / "dataset_dict.json").write_text('{"splits": ["train"')
    with pytest.raises(ValueError, match="^train split of huggingface: data.options.path = ") as error:
        data.build("huggingface", path=str(path), cache_dir=str(tmp_path / "cache")).check()
    assert "\n" not in str(error.value)


def test_a_set_that_is_not_prepared_says_the_next_command(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError) as error:
        data.build("tfds", dataset="imagenet2012:5.1.0", data_dir=str(tmp_path)).check()
    text = str(error.value)
    assert text.startswith("train split of tfds: data.options.dataset = 'imagenet2012:5.1.0': must be prepared")
    assert f"`python launch/prepare_data.py imagenet2012:5.1.0 --data_dir={tmp_path}`" in text
    assert ":synthetic`" in text and "\n" not in text


@pytest.mark.parametrize("limit", [None, 5])
def test_a_split_as_arrays_is_what_the_pipeline_gives(limit):
    dataset = data.build("digits")
    images, labels = dataset.arrays("test", limit=limit)
    assert images.dtype == np.uint8 and len(images) == len(labels) == (limit or len(dataset.test))
    batch = next(iter(data.evaluate(dataset.test, batch_size=len(dataset.test), limit=limit)))
    np.testing.assert_array_equal(images, batch["image"][batch["mask"]])
    np.testing.assert_array_equal(labels, batch["label"][batch["mask"]])


@pytest.mark.parametrize(
    "name, message",
    [
        ("nosuchset", "error: name = 'nosuchset': must be a set of the catalogue, https://"),
        ("imagenet2012:5.1.0", "error: imagenet2012:5.1.0: .*ILSVRC2012_img_train.tar"),
    ],
)
def test_preparing_what_is_not_there_is_one_line(name, message, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    path = pathlib.Path(__file__).parents[2] / "launch/prepare_data.py"
    command = runpy.run_path(str(path))
    with pytest.raises(SystemExit, match=message) as error:
        command["main"]([name, f"--data_dir={tmp_path}"])
    assert "\n" not in str(error.value)

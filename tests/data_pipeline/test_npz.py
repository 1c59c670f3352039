"""Promise: an .npz that is damaged, or holds what cannot be mapped, is one line and never a crash."""

import struct
import subprocess
import sys
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from drawing import examples

from robust_vit.data import arrays, sources

IMAGES, LABELS = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3), np.arange(6) % 3


def save(path, image=IMAGES, label=LABELS, save=np.savez):
    save(path / "test.npz", image=image, label=label)
    return path / "test.npz"


def read(path):
    """Every image and label of the test part, as whoever evaluates reads them."""
    source = sources.build("npz", "test", path=str(path))
    return np.stack([source[i]["image"] for i in range(len(source))]), source.labels


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and "test.npz" in str(error.value)


def test_objects_are_refused_in_one_line_by_a_process_that_lives(tmp_path):
    """A map of pointers ends the process when it is read, so that another process has to try."""
    objects = np.empty((6, 4, 4, 3), object)
    objects[:] = 7
    save(tmp_path, image=objects)
    program = f"from robust_vit.data import sources; sources.build('npz', 'test', path={str(tmp_path)!r})[0]"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.rstrip().endswith("image = 'object': must be plain numbers: uint8 images, integer labels")


@pytest.mark.parametrize(
    "name, array",
    [
        ("label", np.array(list("abcabc"))),
        ("label", np.array([0, 1, 2, 0, 1, None])),
        ("label", np.array([b"a"] * 6)),
        ("image", np.zeros((6, 4, 4), [("r", np.uint8), ("g", np.uint8)])),
        ("image", np.zeros((6, 4, 4), "datetime64[s]")),
    ],
)
def test_other_types_are_refused(tmp_path, name, array):
    save(tmp_path, **{name: array})
    refused(tmp_path, rf":{name} = .*must be plain numbers")


@pytest.mark.parametrize("name, kind", [("image", bool), ("image", np.complex64), ("label", bool), ("label", float)])
def test_numbers_of_another_kind_are_refused(tmp_path, name, kind):
    save(tmp_path, **{name: (IMAGES if name == "image" else LABELS).astype(kind)})
    refused(tmp_path, rf":{name} = '{np.dtype(kind)}': must be")


@pytest.mark.parametrize("order", ["F", "C"])
def test_fortran_order_and_other_byte_orders_are_read(tmp_path, order):
    save(tmp_path, image=np.array(IMAGES, order=order), label=LABELS.astype(">i2"))
    images, labels = read(tmp_path)
    assert np.array_equal(images, IMAGES) and np.array_equal(labels, LABELS)


def test_colours_first_are_refused_with_the_remedy(tmp_path):
    save(tmp_path, image=IMAGES.transpose(0, 3, 1, 2))
    refused(tmp_path, r":image = \(6, 3, 4, 4\): must be \[n,H,W,C\], channels last: transpose\(0, 2, 3, 1\)")


def test_no_examples_are_read_as_none(tmp_path):
    save(tmp_path, image=IMAGES[:0], label=LABELS[:0])
    assert len(sources.build("npz", "test", path=str(tmp_path))) == 0


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_one_compressed_member_is_named(tmp_path, compression):
    path = save(tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("label.npy", members["label.npy"])
        archive.writestr("image.npy", members["image.npy"], compress_type=compression)
    refused(tmp_path, ":image = 'compressed': must be uncompressed to be mapped: write it with np.savez")


def test_one_file_is_train_as_a_whole_and_nothing_else(tmp_path):
    path = str(save(tmp_path))
    source = sources.build("npz", "train", path=path)
    assert len(source) == 6 and np.array_equal(source[5]["image"], IMAGES[5]) and source.origin == path
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=f"data.options.path = .*test.npz': .*a file has no {split} split"):
            sources.build("npz", split, path=path)
    with pytest.raises(ValueError, match="data.options = .'validation_fraction'.: must be left out: one file is read"):
        sources.build("npz", "train", path=path, validation_fraction=0.5)
    with pytest.raises(ValueError, match=f"did you mean 'npz:{path}'"):
        sources.parse_location(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 40, b"\x93NUMPY" + bytes(100)])
def test_a_file_that_is_no_zip_is_named(tmp_path, content):
    (tmp_path / "test.npz").write_bytes(content)
    refused(tmp_path, "damaged, or no .npz file")


@pytest.mark.parametrize(
    "shape", ["(9, 4, 4, 3)", "(5, 4, 4, 3)", "(-6,4,-4, 3)", "(6, 4, 4, 3(", "(6, 4, 4, 3.", "6           "]
)
def test_a_header_that_claims_another_shape_is_refused(tmp_path, shape):
    path = save(tmp_path)
    content = path.read_bytes()
    assert content.count(b"(6, 4, 4, 3)") == 1
    path.write_bytes(content.replace(b"(6, 4, 4, 3)", shape.encode()))
    refused(tmp_path, ":image = .*must be a shape of 288 bytes of uint8|:image: no array header")


def test_a_damaged_label_is_noticed(tmp_path):
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("label.npy")
    content[entry.header_offset + 30 + 20 + 128 + 8] ^= 1
    path.write_bytes(content)
    refused(tmp_path, "damaged, or no .npz file .*Bad CRC-32 for file 'label.npy'")


@pytest.mark.parametrize("offset", [1, 256, 2**32 - 1])
def test_a_directory_that_puts_its_arrays_before_the_file_is_refused(tmp_path, offset):
    """zipfile takes the distance between where the directory is and where it says it is from the place of every array,
    which then lies before the start of the file.
    """
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    (said,) = struct.unpack_from("<I", content, len(content) - 6)  # of the last 22 bytes, the place of the directory
    struct.pack_into("<I", content, len(content) - 6, min(said + offset, 2**32 - 2))
    path.write_bytes(content)
    refused(tmp_path, "damaged")


def test_a_name_that_was_cut_or_broken_is_no_array(tmp_path):
    path = save(tmp_path)
    content = path.read_bytes()
    for damage in (b"image\0npy", b"image\nnpy", b"im\nge.npy"):
        path.write_bytes(content.replace(b"image.npy", damage))
        refused(tmp_path, "array in .* = 'image': must be one of|damaged")


def test_no_byte_of_the_directory_can_crash_the_reading(tmp_path):
    """Every byte after the last array, with every value that is the end of something."""
    path = save(tmp_path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    refusals = 0
    for place in range(start, len(content)):
        for value in {0, 1, 10, 127, 128, 255} - {content[place]}:
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                images, labels = read(path.parent)
                assert len(images) == len(labels)
            except ValueError as error:
                assert "\n" not in str(error)
                refusals += 1
    assert refusals > (len(content) - start) // 2


@examples(60)
@hypothesis.given(data=st.data())
def test_no_damage_crashes_or_speaks_more_than_a_line(tmp_path_factory, data):
    """Truncated, flipped, overwritten: read as it is, or refused."""
    path = save(tmp_path_factory.mktemp("npz"))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        images, labels = read(path.parent)
        assert len(images) == len(labels)
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_shard_truncated_after_its_directory_was_read_is_refused(tmp_path):
    """A zip whose directory survives while its members were cut: the map would reach past the end of the file."""
    path = save(tmp_path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("image.npy")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[: entry.header_offset + 200])
    with (
        open(tmp_path / "cut.npz", "rb") as file,
        pytest.raises(ValueError, match="complete: the file ends .* too early"),
    ):
        arrays._map(file, entry, "cut.npz:image")

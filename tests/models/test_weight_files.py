"""Files of weights as the world has them, wrapped, mislabelled, damaged, quantised: read, or refused in one line."""

import pathlib
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from robust_vit import convert, models
from robust_vit.models import summary
from robust_vit.models.weights import converted, dialects, pickle_tensors, state_dicts, torch_weights, twins

CHECKPOINTS = pathlib.Path(__file__).parent.parent / "data" / "checkpoints"
VIT = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=5)


def drawn():
    module = models.build("vit", **VIT)
    random = np.random.default_rng(0)
    return module, jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), summary.shapes(module))


@pytest.fixture(scope="module")
def timm():
    return torch_weights.to_timm(*drawn())


CLASSES = {"float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "int8": "CharStorage"}


def opcodes(value, storages):
    """The pickle, protocol 2, of nested dicts of arrays and plain numbers, as `torch.save` spells it."""
    if isinstance(value, dict):
        items = b"".join(opcodes(key, storages) + opcodes(one, storages) for key, one in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, np.ndarray):
        key = str(len(storages))
        storages.append(np.ascontiguousarray(value))
        new = str(value.dtype) not in CLASSES
        kind = "UntypedStorage" if new else CLASSES[str(value.dtype)]
        length = value.nbytes if new else value.size
        steps = tuple(step // value.itemsize for step in value.strides)
        storage = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key, "cpu", length) + b"tQ"
        rest = plain(0, value.shape, steps, False) + b"ccollections\nOrderedDict\n)R"
        rest += f"ctorch\n{value.dtype}\n".encode() if new else b""
        rebuild = f"ctorch._utils\n_rebuild_tensor_v{3 if new else 2}\n".encode()
        return rebuild + b"(" + storage + rest + b"tR"
    return plain(value)


def plain(*values):
    return b"".join(pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"") for value in values)


def torch_file(path, value):
    storages = []
    content = b"\x80\x02" + opcodes(value, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def legacy_file(path, value):
    storages = []
    head = [pickle.dumps(one, 2) for one in (pickle_tensors.LEGACY_MAGIC, 1001, {"little_endian": True})]
    body = b"\x80\x02" + opcodes(value, storages) + b"."
    keys = pickle.dumps([str(key) for key in range(len(storages))], 2)
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages)
    path.write_bytes(b"".join(head) + body + keys + data)
    return path


def error_of(path, **keywords):
    with pytest.raises(ValueError) as caught:
        torch_weights.load("vit", path, **{**VIT, **keywords})
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def same(path, timm, **keywords):
    found = state_dicts.read(path, **keywords)
    assert found.keys() == timm.keys()
    assert all(np.array_equal(found[name], timm[name]) for name in timm)


# Which mapping is the state dict --------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [torch_file, legacy_file])
def test_a_tensor_beside_the_state_dict_is_said_and_left_out(tmp_path, timm, write):
    path = write(tmp_path / "model.pth.tar", {"epoch": 3, "state_dict": timm, "best_acc1": np.float32([76.1])})
    same(path, timm)
    *_, report = torch_weights.load("vit", path, **VIT)
    assert "left out best_acc1: beside the state dict 'state_dict'" in str(report)


@pytest.mark.parametrize("place", [("weights",), ("model", "state_dict"), ("checkpoint", "net"), ("model", "backbone")])
def test_the_one_subtree_of_tensors_is_found(tmp_path, timm, place):
    content = timm
    for key in reversed(place):
        content = {key: content, "epoch": 3, "best": np.zeros((), np.float32)}
    same(torch_file(tmp_path / "a.pth", {**content, "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}}}), timm)


def test_several_subtrees_of_one_rank_are_named(tmp_path, timm):
    path = torch_file(tmp_path / "gan.pth", {"generator": timm, "discriminator": timm})
    assert "it holds generator and discriminator" in error_of(path)


def test_averages_are_hinted_at_where_nothing_else_is(tmp_path, timm):
    path = torch_file(tmp_path / "ema.pth", {"model_ema": timm, "epoch": 2})
    assert "averaged weights only, under 'model_ema': pass ema=True" in error_of(path)
    same(path, timm, ema=True)
    both = torch_file(tmp_path / "both.pth", {"model": timm, "model_ema": {name: 2 * timm[name] for name in timm}})
    same(both, timm)
    same(both, {name: 2 * timm[name] for name in timm}, ema=True)
    assert "must be a file with averaged weights" in error_of(torch_file(tmp_path / "raw.pth", timm), ema=True)


# What the file is -----------------------------------------------------------------------------------------------------


def test_a_safetensors_file_under_another_name_is_read_and_said(tmp_path, timm):
    path = tmp_path / "weights.pth"
    path.write_bytes(safetensors.numpy.save(timm))
    same(path, timm)
    assert "a safetensors file, whatever its name" in str(torch_weights.load("vit", path, **VIT)[2])
    same(torch_file(tmp_path / "weights.safetensors", timm), timm)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content, what",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><head><title>Not found</title>", "a web page"),
        (b"<html><body>Sign in</body></html>", "a web page"),
        (b"\x1f\x8b\x08\x00 and so on, compressed", "gzip"),
        (b"", "empty"),
    ],
)
def test_what_is_mistaken_for_weights_is_named(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    assert what in error_of(tmp_path / name)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "there is no such file" in error_of(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "this is a folder" in error_of(tmp_path / "folder.pth")


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["zip.pth.tar", "legacy.pth", "weights.safetensors"])
def test_a_flipped_byte_is_one_line_and_never_other_weights_where_there_is_a_checksum(tmp_path, file):
    """A zip archive has one a member; the older stream and safetensors have none, and only what is read may differ."""
    small = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
    if file == "weights.safetensors":
        content, expected = safetensors.numpy.save(small), small
    else:
        content = (CHECKPOINTS / file).read_bytes()
        expected = state_dicts.read(CHECKPOINTS / file)
    path = tmp_path / file
    random = np.random.default_rng(0)
    places = {*range(0, min(64, len(content))), *random.integers(0, len(content), 300).tolist()}
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = state_dicts.read(path)
        except ValueError as error:
            assert "\n" not in str(error) and path.name in str(error)
            continue
        if zipfile.is_zipfile(path):  # what is not covered by a checksum (dates, attributes) says nothing of weights
            assert found.keys() == expected.keys(), place
            assert all(np.array_equal(found[name], expected[name]) for name in found), place


def test_a_damaged_storage_is_named_by_its_tensor(tmp_path, timm):
    path = torch_file(tmp_path / "a.pth", timm)
    content = bytearray(path.read_bytes())
    content[content.find(timm["pos_embed"].tobytes()[:64]) + 5] ^= 1
    path.write_bytes(content)
    assert "tensor 'pos_embed' is damaged (Bad CRC-32" in error_of(path)


def test_numbers_that_are_no_weights_are_refused_with_the_cause(tmp_path, timm):
    def changed(**arrays):
        path = tmp_path / "a.pth"
        return error_of(torch_file(path, {**timm, **{"pos_embed": arrays["pos_embed"]}}))

    shape = timm["pos_embed"].shape
    assert "uint16" in changed(pos_embed=np.zeros(shape, np.uint16)) and "quantised" in changed(
        pos_embed=np.zeros(shape, np.int8)
    )
    float8 = pickle_tensors.ELEMENTS["float8_e4m3fn"]
    assert "float8_e4m3fn" in changed(pos_embed=np.zeros(shape, float8))
    holed = timm["pos_embed"].copy()
    holed.flat[:2] = np.nan, np.inf
    assert "tensor 'pos_embed': 2 of its 80 values are NaN or infinite" in changed(pos_embed=holed)


def test_statistics_of_pixels_in_0_to_255_are_refused(tmp_path, timm):
    wrapped = {f"model.{name}": array for name, array in timm.items()}
    wrapped |= {
        "normalize.mean": np.float32([123.675, 116.28, 103.53]),
        "normalize.std": np.float32([58.4, 57.1, 57.4]),
    }
    path = torch_file(tmp_path / "a.pth", wrapped)
    assert "mean = (123.675, 116.28, 103.53)" in error_of(path) and "divide by 255" in error_of(path)


# Spellings ------------------------------------------------------------------------------------------------------------


def madry(timm):
    tensors = {"module.normalizer.new_mean": np.float32([0.5, 0.4, 0.3]).reshape(3, 1, 1)}
    tensors["module.normalizer.new_std"] = np.float32([0.2, 0.2, 0.3]).reshape(3, 1, 1)
    tensors |= {f"module.model.{name}": array for name, array in timm.items()}
    for name in ("new_mean", "new_std"):
        tensors[f"module.attacker.normalize.{name}"] = tensors[f"module.normalizer.{name}"]
    return tensors | {f"module.attacker.model.{name}": array for name, array in timm.items()}


def test_the_names_of_the_robustness_library(timm):
    found = dialects.translate(madry(timm))
    assert found.tensors.keys() == timm.keys() and found.normalization["std"] == (0.2, 0.2, 0.3)
    assert len([name for name, why in found.ignored if "attacker's copy" in why]) == len(timm)
    with pytest.raises(ValueError, match="must be copies of each other"):
        dialects.translate({**madry(timm), "module.attacker.model.pos_embed": timm["pos_embed"] + 1})
    with pytest.raises(ValueError, match="another mean"):
        dialects.translate({**madry(timm), "module.attacker.normalize.new_mean": np.float32([0, 0, 0])})
    alone = {name: array for name, array in madry(timm).items() if ".attacker." not in name}
    assert dialects.translate(alone).tensors.keys() == timm.keys()


def test_models_of_the_same_shapes_are_told(tmp_path):
    found = twins.names("xcit_nano_12_p16_224", {})
    assert "xcit_nano_12_p8_224" in found or "xcit_nano_12_p4_32" in found
    assert all(name.startswith("xcit_nano_12") for name in found)
    assert "resnet50_gelu_32" in twins.names("resnet50_32", {})
    assert twins.names("vit", VIT) == []


# The command ----------------------------------------------------------------------------------------------------------

MODEL = ["--model=vit", "--image_size=8", "--num_classes=5"]
MODEL += [f"--option={name}={VIT[name]}" for name in ("depth", "width", "heads", "patch_size")]


def command(*arguments):
    with pytest.raises(SystemExit) as caught:
        convert.main(["convert", *arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_hints_are_spelled_as_the_command_takes_them(tmp_path, timm):
    to = f"--to={tmp_path / 'out'}"
    ema = torch_file(tmp_path / "ema.pth", {"ema": timm})
    assert command(*MODEL, f"--from={ema}", to).endswith("pass --ema")
    raw = torch_file(tmp_path / "raw.pth", timm)
    said = command(*MODEL[:2], "--num_classes=7", *MODEL[3:], f"--from={raw}", to)
    assert "pass --num_classes=5, or --new_head for a new head" in said
    said = command(MODEL[0], "--image_size=16", *MODEL[2:], f"--from={raw}", to)
    assert "pass --resize=antialias (as timm) or 'plain'" in said
    wrapped = {**{f"model.{name}": array for name, array in timm.items()}}
    wrapped |= {"normalize.mean": np.float32([0.5] * 3), "normalize.std": np.float32([0.25] * 3)}
    path = torch_file(tmp_path / "wrapped.pth", wrapped)
    said = command(*MODEL, f"--from={path}", to, "--option=mean=(0.4,0.4,0.4)", "--option=std=(0.2,0.2,0.2)")
    assert "or --normalization=model" in said


def test_outputs_with_a_dot_in_the_folder_and_outputs_that_cannot_be_written(tmp_path, timm, capsys):
    raw = torch_file(tmp_path / "raw.pth", timm)
    convert.main(["convert", *MODEL, f"--from={raw}", f"--to={tmp_path / 'vit-v1.5'}"])
    assert (tmp_path / "vit-v1.5" / "model.json").is_file() and "written to" in capsys.readouterr().out
    (tmp_path / "taken").write_text("a file")
    for to in ("taken", "taken/out", "taken/out.safetensors", "vit-v1.5/model.json"):
        assert "taken" in command(*MODEL, f"--from={raw}", f"--to={tmp_path / to}") or "model.json" in to
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_failed_conversion_keeps_the_earlier_one(tmp_path, monkeypatch):
    module, variables = drawn()
    converted.save(tmp_path / "kept", "vit", module, variables)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converted.provenance, "write_atomically", full)
    with pytest.raises(OSError):
        converted.save(tmp_path / "kept", "vit", module, jax.tree.map(np.zeros_like, variables))
    monkeypatch.undo()
    _, kept, _ = converted.load(tmp_path / "kept")
    jax.tree.map(np.testing.assert_array_equal, kept, variables)

"""PyTorch weights: every family there and back, every spelling, strictness, adaptation, untrusted files."""

import io
import pathlib
import pickle
import sys
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from robust_vit import models
from robust_vit.models import summary
from robust_vit.models.parts import forms, positions
from robust_vit.models.weights import dialects, pickle_tensors, state_dicts, torch_weights

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny import TINY

CHECKPOINTS = pathlib.Path(__file__).parent.parent / "data" / "checkpoints"
VIT = dict(depth=2, width=16, heads=2, patch_size=4, image_size=16, num_classes=5)


def drawn(module, seed=0):
    """Variables without two equal values, so that nothing can be swapped unseen; nothing is compiled."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        return random.permutation(leaf.size).reshape(leaf.shape).astype(leaf.dtype) + random.random(dtype=np.float32)

    return jax.tree.map(draw, summary.shapes(module))


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def vit(**overrides):
    module = models.build("vit", **{**VIT, **overrides})
    return module, drawn(module)


def timm_of_vit(**overrides):
    return torch_weights.to_timm(*vit(**overrides))


def written(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


# There and back -------------------------------------------------------------------------------------------------------


def every_form():
    for name, overrides in TINY.items():
        yield name, overrides
        try:
            scanned = models.build(name, **{**overrides, "scan": True})
            summary.shapes(scanned)
        except ValueError:  # a family without equal blocks
            continue
        yield name, {**overrides, "scan": True}


@pytest.mark.parametrize("name, overrides", list(every_form()), ids=lambda v: v if isinstance(v, str) else "scan" in v)
def test_there_and_back_is_bit_exact(name, overrides):
    module = models.build(name, **overrides)
    variables = drawn(module)
    tensors = torch_weights.to_timm(module, variables)
    back, report = torch_weights.from_timm(module, dialects.translate(tensors).tensors)
    assert not report.problem() and not report.reshaped
    assert len(report.loaded) == len(jax.tree.leaves(summary.shapes(forms.unrolled(module))))
    same(back, variables)


def test_the_scanned_form_writes_the_file_of_the_unrolled_one():
    module, variables = vit(scan=True)
    assert forms.scanned_names(module) == ("blocks",)
    unrolled = forms.to_unrolled(module, variables)
    expected = torch_weights.to_timm(module.clone(scan=False), unrolled)
    found = torch_weights.to_timm(module, variables)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_names_and_layouts_by_hand():
    module, variables = vit()
    tensors = torch_weights.to_timm(module, variables)
    params = variables["params"]
    np.testing.assert_array_equal(
        tensors["patch_embed.proj.weight"], params["patch_embed"]["proj"]["kernel"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(tensors["blocks.1.mlp.fc1.weight"], params["blocks_1"]["mlp"]["fc1"]["kernel"].T)
    np.testing.assert_array_equal(tensors["blocks.0.norm1.weight"], params["blocks_0"]["norm1"]["scale"])
    np.testing.assert_array_equal(tensors["pos_embed"], params["pos_embed"])


def test_running_statistics_and_their_counter():
    module = models.build("resnet50_32", **TINY["resnet50_32"])
    variables = drawn(module)
    tensors = torch_weights.to_timm(module, variables)
    np.testing.assert_array_equal(tensors["bn1.running_var"], variables["batch_stats"]["bn1"]["var"])
    assert tensors["bn1.num_batches_tracked"] == 0 and tensors["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_read(tmp_path, dtype):
    tensors = {name: array.astype(dtype) for name, array in timm_of_vit().items()}
    _, variables, _ = torch_weights.load("vit", written(tmp_path, tensors), **VIT)
    leaf = (
        variables["params"]["norm"]["bias"] if "norm" in variables["params"] else variables["params"]["fc_norm"]["bias"]
    )
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(leaf, next(v for k, v in tensors.items() if k in ("norm.bias", "fc_norm.bias")))


# Other spellings ------------------------------------------------------------------------------------------------------


def test_wrappers_and_their_normalisation(tmp_path):
    module, variables = vit()
    tensors = {f"module.model.{name}": array for name, array in torch_weights.to_timm(module, variables).items()}
    tensors["module.normalize.mean"] = np.float32([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    tensors["module.normalize.std"] = np.float32([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1)
    path = written(tmp_path, tensors)
    found, loaded, report = torch_weights.load("vit", path, **VIT)
    assert found.mean == (0.485, 0.456, 0.406) and found.std == (0.2, 0.3, 0.4)
    same(loaded, jax.tree.map(jnp.asarray, variables))
    assert "'module.model.'" in str(report) and "from the file" in str(report)
    assert torch_weights.load("vit", path, normalization="none", **VIT)[0].mean == ()
    with pytest.raises(ValueError, match="those in the file"):
        torch_weights.load("vit", path, mean=(0.5,) * 3, std=(0.5,) * 3, **VIT)
    del tensors["module.normalize.std"]
    with pytest.raises(ValueError, match="both a mean and a standard deviation"):
        torch_weights.load("vit", written(tmp_path, tensors), **VIT)


def test_without_normalisation_in_the_file_the_report_says_whose_it_is(tmp_path):
    overrides = {key: value for key, value in VIT.items()}
    module = models.build("vit_tiny_patch16_224", **overrides)
    path = written(tmp_path, torch_weights.to_timm(module, drawn(module)))
    found, _, report = torch_weights.load("vit_tiny_patch16_224", path, **overrides)
    assert found.mean == (0.5, 0.5, 0.5) and "the named model's, the file has none" in str(report)


def respelled_xcit(tensors):
    """As in facebookresearch's checkpoints."""
    out = {}
    for name, array in tensors.items():
        if ".attn.k." in name and "cls_attn" in name or ".attn.v." in name:
            continue
        if "cls_attn" in name and ".attn.q." in name:
            parts = [tensors[name.replace(".q.", f".{part}.")] for part in "qkv"]
            out[name.replace(".q.", ".qkv.")] = np.concatenate(parts)
        else:
            out[name.replace("pos_embed.", "pos_embeder.")] = array
    return out


def respelled_swin(tensors):
    """As in Microsoft's checkpoints, with the buffers that those hold."""
    out = {
        "layers.0.blocks.1.attn_mask": np.zeros((1, 4, 4)),
        "layers.0.blocks.0.attn.relative_position_index": np.zeros(2),
    }
    for name, array in tensors.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        out[".".join(parts).replace("head.fc.", "head.")] = array
    return out


def respelled_convnext(tensors):
    """As in facebookresearch's checkpoints."""
    out = {}
    for name, array in tensors.items():
        name = name.replace("head.norm.", "norm.").replace("head.fc.", "head.").replace(".blocks.", ".")
        name = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            name = ".".join(["downsample_layers", parts[1], *parts[3:]])
        out[name] = array
    return out


SPELLINGS = {
    "xcit": (respelled_xcit, "XCiT (facebookresearch)"),
    "swin": (respelled_swin, "Swin (Microsoft)"),
    "convnext_tiny": (respelled_convnext, "ConvNeXt (facebookresearch)"),
}
SIZES = {
    **TINY,
    "swin": dict(image_size=16, patch_size=2, window_size=4, width=8, depths=(2, 2), heads=(2, 4), num_classes=5),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_names_of_released_code(name):
    respell, said = SPELLINGS[name]
    module = models.build(name, **SIZES[name])
    tensors = torch_weights.to_timm(module, drawn(module))
    respelled = respell(tensors)
    assert respelled.keys() != tensors.keys()
    found = dialects.translate(respelled)
    assert f"names of {said}" in found.notes
    weights = {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
    assert found.tensors.keys() == weights.keys()
    assert all(np.array_equal(found.tensors[name], weights[name]) for name in weights)


# Strictness -----------------------------------------------------------------------------------------------------------


def error_of(tmp_path, tensors, **keywords):
    with pytest.raises(ValueError) as caught:
        torch_weights.load("vit", written(tmp_path, tensors), **{**VIT, **keywords})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_tensors_are_errors(tmp_path):
    tensors = timm_of_vit()
    tensors["blocks.0.attn.qkw.weight"] = tensors.pop("blocks.0.attn.qkv.weight")
    said = error_of(tmp_path, tensors)
    assert "1 missing (blocks.0.attn.qkv.weight)" in said and "did you mean 'blocks.0.attn.qkv.weight'" in said
    assert "1 unexpected (blocks.0.attn.qkw.weight" in said
    assert "5 classes: pass num_classes=5, or new_head" in error_of(tmp_path, timm_of_vit(), num_classes=7)
    assert "resize='antialias'" in error_of(tmp_path, timm_of_vit(), image_size=32)
    assert "0 tensors fit" in error_of(tmp_path, {"other.weight": np.zeros(3)})
    assert "must be" in error_of(tmp_path, timm_of_vit(), resize="bilinear")


def test_a_prefix_on_some_names_only_is_not_taken_off(tmp_path):
    tensors = {("model." if "norm" in name else "") + name: array for name, array in timm_of_vit().items()}
    assert "unexpected" in error_of(tmp_path, tensors)


# Adaptation -----------------------------------------------------------------------------------------------------------


def test_a_new_head_and_none(tmp_path):
    path = written(tmp_path, timm_of_vit())
    module, variables, report = torch_weights.load("vit", path, new_head=True, **{**VIT, "num_classes": 7})
    assert variables["params"]["head"]["kernel"].shape == (16, 7)
    assert sorted(name for name, *_ in report.reshaped) == ["head.bias", "head.weight"]
    initial = models.init(module, jax.random.key(0))["params"]["head"]
    same(variables["params"]["head"], initial)
    _, variables, report = torch_weights.load("vit", path, new_head=True, **{**VIT, "num_classes": 0})
    assert "head" not in variables["params"] and "left out" in str(report)


@pytest.mark.parametrize("resize", ["antialias", "plain"])
def test_another_image_size_resizes_positions(tmp_path, resize):
    tensors = timm_of_vit()
    _, variables, report = torch_weights.load(
        "vit", written(tmp_path, tensors), resize=resize, **{**VIT, "image_size": 8}
    )
    expected = positions.resize_learned(tensors["pos_embed"], (4, 4), (2, 2), 1, resize == "antialias")
    np.testing.assert_array_equal(variables["params"]["pos_embed"], expected)
    assert [name for name, *_ in report.reshaped] == ["pos_embed"]


def test_another_window_resizes_relative_biases():
    sizes = SIZES["swin"]
    tensors = torch_weights.to_timm(*(lambda m: (m, drawn(m)))(models.build("swin", **sizes)))
    module = models.build("swin", **{**sizes, "window_size": 2})
    variables, report = torch_weights.from_timm(module, tensors, resize="plain")
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    table = variables["params"]["layers_1"]["blocks_1"]["attn"]["relative_position_bias_table"]
    np.testing.assert_array_equal(table, positions.resize_relative(tensors[name], (4, 4), (2, 2)))
    assert not report.problem() and {how for *_, how in report.reshaped} == {"resized (plain)"}


def test_relative_positions_of_a_vit_and_a_grid_that_is_no_square():
    wide = dict(image_size=(8, 16), positions="relative")
    tensors = timm_of_vit(**wide)
    module, _ = vit(**{**wide, "image_size": 16})
    _, report = torch_weights.from_timm(module, tensors, resize="antialias")
    assert len(report.mismatched) == VIT["depth"]  # which rectangle cannot be read off the number of rows
    _, report = torch_weights.from_timm(module, tensors, resize="antialias", grid=(2, 4))
    assert not report.problem() and len(report.reshaped) == VIT["depth"]


def test_stem_strides_keep_every_weight_of_an_xcit():
    big = models.build("xcit", **{**TINY["xcit"], "patch_size": 16, "image_size": 32})
    small = models.build("xcit", **{**TINY["xcit"], "patch_size": 4, "image_size": 32})
    variables = drawn(big)
    found, report = torch_weights.from_timm(small, dialects.translate(torch_weights.to_timm(big, variables)).tensors)
    assert not report.problem() and not report.reshaped
    same(found, variables)


# Files that are not trusted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["zip.pth.tar", "legacy.pth"])
def test_what_torch_wrote_is_read_without_torch(file):
    found, expected = state_dicts.read(CHECKPOINTS / file), np.load(CHECKPOINTS / "expected.npz")
    assert set(found) == set(expected.files)
    for name, array in found.items():
        assert array.shape == expected[name].shape
        np.testing.assert_array_equal(array.astype(np.float64), expected[name])
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16 and found["half"].dtype == np.float16
    assert state_dicts.read(CHECKPOINTS / file, ema=True)["scalar"] == 8
    everything = pickle_tensors.read(CHECKPOINTS / file)
    assert everything["epoch"] == 3 and isinstance(everything["args"], pickle_tensors.Opaque)


class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)


def zipped(tmp_path, content):
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "content, named",
    [
        (pickle.dumps({"state_dict": Bomb()}), "pathlib"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
        (b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.', "builtins.eval"),
        (b"ctorch.nn.modules.linear\nLinear\n)R.", "torch.nn.modules.linear.Linear"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
    ],
)
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    for path in (zipped(tmp_path, content), tmp_path / "legacy.pth"):
        if path.name == "legacy.pth":
            magic = [pickle.dumps(part, 2) for part in (pickle_tensors.LEGACY_MAGIC, 1001, {"little_endian": True})]
            path.write_bytes(b"".join(magic) + content)
        with pytest.raises(ValueError) as caught:
            state_dicts.read(path)
        assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_cannot_reach_outside_its_storage(tmp_path):
    storage = pickle_tensors.Storage(np.float32, 4, lambda: bytes(16))
    np.testing.assert_array_equal(pickle_tensors.Tensor(storage, 1, (3,), (1,)).numpy(), np.zeros(3))
    for offset, shape, stride in ((2, (3,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (3, 1)), (3, (2,), (-1,))):
        with pytest.raises(ValueError, match="outside its storage"):
            pickle_tensors.Tensor(storage, offset, shape, stride).numpy()
    with pytest.raises(ValueError, match="truncated"):
        pickle_tensors.Tensor(pickle_tensors.Storage(np.float32, 4, lambda: bytes(8)), 0, (4,), (1,)).numpy()


def test_damaged_and_foreign_files_are_named(tmp_path):
    data = (CHECKPOINTS / "zip.pth.tar").read_bytes()
    legacy = (CHECKPOINTS / "legacy.pth").read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    contents = [
        data[: len(data) // 2],
        legacy[: len(legacy) // 2],
        legacy[:40],
        b"",
        b"hello",
        b"\x80\x02.",
        buffer.getvalue(),
    ]
    for content in [*contents, pickle.dumps([1, 2])]:
        path = tmp_path / "file.pt"
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            state_dicts.read(path)
        assert "file.pt" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "file.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="no safetensors file"):
        state_dicts.read(tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="must be a .safetensors"):
        state_dicts.read(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        state_dicts.read(zipped(tmp_path, pickle.dumps({"epoch": 1})))

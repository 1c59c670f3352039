"""`python -m robust_vit.convert` as a user meets it: files, figures, errors; what `evaluate` makes of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from robust_vit import config as config_lib
from robust_vit import convert, evaluate, models
from robust_vit.models.weights import converted, torch_weights
from robust_vit.training import checkpoint, loop, state

FIELDS = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, num_classes=4)
OPTIONS = [f"--option={key}={FIELDS[key]}" for key in ("depth", "width", "heads", "patch_size")]
MODEL = ["--model=deit_tiny_patch16_224", "--image_size=8", "--num_classes=4", *OPTIONS]
STATISTICS = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A PyTorch file with its normalisation, and images with the logits that must come out."""
    folder = tmp_path_factory.mktemp("published")
    module = models.build("deit_tiny_patch16_224", **FIELDS, **STATISTICS)
    variables = models.init(module, jax.random.key(1))
    tensors = {f"model.{name}": array for name, array in torch_weights.to_timm(module, variables).items()}
    tensors["normalize.mean"], tensors["normalize.std"] = (np.float32(STATISTICS[key]) for key in ("mean", "std"))
    safetensors.numpy.save_file(tensors, folder / "published.safetensors")
    images = np.asarray(jax.random.uniform(jax.random.key(2), (3, 8, 8, 3)))
    np.savez(folder / "expected.npz", images=images.transpose(0, 3, 1, 2), logits=module.apply(variables, images))
    return folder, variables


def run(*arguments):
    convert.main(["convert", *arguments])


def error_of(*arguments, command=convert):
    with pytest.raises(SystemExit) as caught:
        command.main(["command", *arguments])
    text = str(caught.value)
    assert text.startswith("error: ") and "\n" not in text
    return text


def test_there_verified_and_back(published, tmp_path, capsys):
    folder, variables = published
    source = folder / "published.safetensors"
    run(*MODEL, f"--from={source}", f"--to={tmp_path / 'deit'}", f"--verify={folder / 'expected.npz'}")
    printed = capsys.readouterr().out
    assert "20 tensors loaded" in printed and "from the file" in printed and "verified: " in printed
    module, loaded, description = converted.load(tmp_path / "deit")
    assert (module.mean, module.std) == (STATISTICS["mean"], STATISTICS["std"])
    assert description["source"]["sha256"] == converted.sha256(source)
    assert description["source"]["verified"]["difference"] < 1e-6
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)

    run(f"--from={tmp_path / 'deit'}", f"--to={tmp_path / 'back.safetensors'}")
    original = safetensors.numpy.load_file(source)
    back = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert {f"model.{name}" for name in back} == {name for name in original if not name.startswith("normalize")}
    assert all(np.array_equal(original[f"model.{name}"], array) for name, array in back.items())


def test_a_wrong_normalisation_fails_the_verification(published, tmp_path):
    folder, _ = published
    arguments = [*MODEL, f"--from={folder / 'published.safetensors'}", f"--to={tmp_path / 'deit'}"]
    said = error_of(*arguments, "--normalization=none", f"--verify={folder / 'expected.npz'}")
    assert "logits differ" in said and "normalisation of the model is: none" in said
    assert not (tmp_path / "deit").exists()


def test_converted_weights_can_be_scanned_and_are_checked(published, tmp_path):
    folder, variables = published
    run(*MODEL, f"--from={folder / 'published.safetensors'}", f"--to={tmp_path / 'deit'}")
    module, scanned, _ = converted.load(tmp_path / "deit", scan=True, dtype=jnp.bfloat16)
    assert module.dtype == jnp.bfloat16 and scanned["params"]["blocks"]["norm1"]["scale"].shape == (1, 16)
    with pytest.raises(ValueError, match="see the overrides"):
        converted.load(tmp_path / "deit", num_classes=7)
    weights = tmp_path / "deit" / converted.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="SHA-256"):
        converted.load(tmp_path / "deit")
    with pytest.raises(ValueError, match="a folder with converted weights"):
        converted.load(tmp_path)


def test_mistakes_are_told_in_one_line(published, tmp_path):
    folder, _ = published
    source, to = f"--from={folder / 'published.safetensors'}", f"--to={tmp_path / 'deit'}"
    assert "did you mean 'deit_tiny_patch16_224'" in error_of("--model=deit_tiny_patch16_24", source, to)
    assert "model = None" in error_of(source, to)
    assert "did you mean 'patch_size'" in error_of(*MODEL, source, to, "--option=patchsize=4")
    assert "must be a folder, or a file named .safetensors" in error_of(*MODEL, source, f"--to={tmp_path / 'a.pth'}")
    assert "must be given" in error_of(*MODEL, source)
    assert "must be a .safetensors" in error_of(*MODEL, f"--from={tmp_path / 'absent.pth'}", to)
    assert "4 classes: pass --num_classes=4" in error_of(*MODEL, source, to, "--num_classes=7")
    assert "images and logits" in error_of(*MODEL, source, to, f"--verify={folder / 'published.safetensors'}")
    assert "image_size = '8x'" in error_of(*MODEL, source, to, "--image_size=8x")
    assert "left out" in error_of("--model=vit", f"--from={folder}", to)


@pytest.fixture
def config():
    config = config_lib.base()
    config.data.name = "synthetic"
    config.data.options = config_lib.ConfigDict({"size": 8, "channels": 3, "classes": 4, "examples": 60})
    config.evaluation.update({"batch_size": 8, "steps": 2, "restarts": 1})
    config.model.update({"name": "vit", "depth": 1, "width": 16, "heads": 2, "patch_size": 4})
    return config


def test_evaluate_measures_converted_weights(published, config, tmp_path, monkeypatch):
    folder, _ = published
    run(*MODEL, f"--from={folder / 'published.safetensors'}", f"--to={tmp_path / 'deit'}")
    monkeypatch.setattr(config_lib, "load_file", lambda path: config)
    arguments = ["--config=its.py", f"--workdir={tmp_path}", "--suite=clean"]
    result = evaluate.main(["evaluate", f"--weights_dir={tmp_path / 'deit'}", *arguments])
    assert result["clean"]["examples"] == 12
    assert result["weights"]["source"] == converted.sha256(folder / "published.safetensors")
    assert json.loads((tmp_path / "result.json").read_text())["weights"]["model"] == "deit_tiny_patch16_224"
    config.data.options.classes = 3
    said = error_of(f"--weights_dir={tmp_path / 'deit'}", *arguments, command=evaluate)
    assert "num_classes = 4: must be 3" in said
    assert "without --logits_fn" in error_of("--weights_dir=a", "--logits_fn=b:c", *arguments, command=evaluate)


def test_a_run_folder_becomes_a_timm_file(config, tmp_path):
    experiment = loop.build(config)
    loop.claim(tmp_path / "run", experiment.config)
    made = state.create(experiment.module, experiment.tx, experiment.dataset.image_shape, 0, False)
    kept = checkpoint.Checkpoints(tmp_path / "run")
    kept.save(3, made, {})
    kept.close()
    run(f"--from={tmp_path / 'run'}", "--checkpoint=latest", f"--to={tmp_path / 'out.safetensors'}")
    tensors = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    kernel = np.asarray(made.params["blocks_0"]["attn"]["qkv"]["kernel"])
    np.testing.assert_array_equal(tensors["blocks.0.attn.qkv.weight"], kernel.T)

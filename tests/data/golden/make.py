"""Makes the files of this folder: python tests/data/golden/make.py DUMPS (needs the extra `peers`; see README.md).

DUMPS holds the full reference dumps: TAG.safetensors, TAG.npz, TAG.json. Most are copied without what no test reads.
The two with large weights (REDRAWN) are replaced by the same models with redrawn weights, computed by PyTorch here
after the PyTorch model built here has reproduced the full dump.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
import torch
from redraw import redraw
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
KEPT = ("x", "y", "logits64", "xgrad64", "pgrad_norm", "pgrad_dot", "train_logits", "train_xgrad", "train_stats")
REDRAWN = ("micro_vit_cvst", "micro_mobilevit_64")


def import_timm():
    """timm without torchvision's compiled operators, which a CPU build of torch cannot load."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    timm.layers.set_fused_attn(False)
    return timm, library


def build(tag: str) -> torch.nn.Module:
    """The PyTorch model of a redrawn tag."""
    timm, _ = import_timm()
    if tag == "micro_mobilevit_64":
        return timm.create_model("mobilevit_xxs", num_classes=10)
    model = timm.create_model("vit_small_patch16_224", img_size=32, depth=1, num_classes=10)
    model.patch_embed.proj = ConvStem(timm.layers.LayerNorm2d)
    return model


class ConvStem(torch.nn.Module):
    """Four 3x3 stride-2 convolutions with LayerNorm over channels and GELU, then a 1x1 (Singh et al., 2023)."""

    def __init__(self, norm: type, width: int = 384):
        super().__init__()
        parts, channels = [], 3
        for features in (48, 96, 192, 384):
            parts += [torch.nn.Conv2d(channels, features, 3, 2, 1), norm(features, eps=1e-6), torch.nn.GELU()]
            channels = features
        self.stem = torch.nn.Sequential(*parts, torch.nn.Conv2d(channels, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


def evaluate(model: torch.nn.Module, x: np.ndarray, y: np.ndarray, dtype: torch.dtype, train: bool = False):
    """Logits, and the gradients of the mean cross-entropy with respect to the images and every parameter."""
    model.to(dtype).train(train).zero_grad()
    images = torch.from_numpy(x).to(dtype).requires_grad_()
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
    gradients = [p.grad.numpy().astype(np.float64).ravel() for _, p in model.named_parameters()]
    return logits.detach().numpy(), images.grad.numpy(), gradients


def dump(model: torch.nn.Module, x: np.ndarray, y: np.ndarray, buffers: list[str]) -> dict[str, np.ndarray]:
    """Everything in KEPT, for the model's present weights."""
    logits, xgrad, gradients = evaluate(model, x, y, torch.float64)
    out = {"x": x, "y": y, "logits64": logits, "xgrad64": xgrad}
    out["pgrad_norm"] = np.array([np.linalg.norm(g) for g in gradients])
    out["pgrad_dot"] = np.array([g @ np.cos(np.arange(g.size)) for g in gradients])
    if buffers:
        out["train_logits"], out["train_xgrad"], _ = evaluate(model, x, y, torch.float32, train=True)
        state = model.state_dict()
        out["train_stats"] = np.concatenate([state[name].numpy().ravel() for name in buffers])
    return out


def reproduce(tag: str, dumps: pathlib.Path, meta: dict) -> dict[str, np.ndarray]:
    """Checks our PyTorch model against the full dump, then computes the dump of redrawn weights."""
    full, model = np.load(dumps / f"{tag}.npz"), build(tag)
    _load(model, load_file(dumps / f"{tag}.safetensors"))
    logits, xgrad, _ = evaluate(model, full["x"], full["y"], torch.float64)
    for found, expected in ((logits, full["logits64"]), (xgrad, full["xgrad64"])):
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{tag}: reproduces the full dump within {difference:.1e}")
        assert difference < 1e-12
    floating = {name: tuple(t.shape) for name, t in model.state_dict().items() if t.is_floating_point()}
    model = model.float()
    _load(model, redraw(floating))
    return dump(model, full["x"], full["y"], [_name(buffer) for buffer in meta.get("bn_buffers", [])])


def _load(model: torch.nn.Module, state: dict[str, np.ndarray]) -> None:
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)


def _name(entry) -> str:
    return entry if isinstance(entry, str) else entry[0]


def main(dumps: pathlib.Path) -> None:
    index, seen = {}, {}
    for path in sorted(dumps.glob("*.json")):
        tag, meta = path.stem, json.loads(path.read_text())
        entry = {
            "model": meta["name"],
            "keywords": meta["kwargs"],
            "versions": meta["versions"],
            "params": [_name(entry) for entry in meta["params"]],
            "buffers": [_name(entry) for entry in meta.get("bn_buffers", [])],
        }
        if tag in REDRAWN:
            arrays = reproduce(tag, dumps, meta)
            entry |= {"weights": None, "versions": entry["versions"] | {"torch": torch.__version__}}
        else:
            full = np.load(dumps / f"{tag}.npz")
            arrays = {name: full[name] for name in full.files if name in KEPT or name.startswith("keep/")}
            content = (dumps / f"{tag}.safetensors").read_bytes()
            entry["weights"] = f"{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
            (HERE / "weights" / entry["weights"]).write_bytes(content)
        index[tag] = entry
        content = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
        if content in seen:  # vit_tiny and deit_tiny are one graph
            entry["same_as"] = seen[content]
            continue
        seen[content] = tag
        np.savez_compressed(HERE / f"{tag}.npz", **arrays)
    lines = ",\n".join(f"{json.dumps(tag)}: {json.dumps(entry)}" for tag, entry in index.items())
    (HERE / "index.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

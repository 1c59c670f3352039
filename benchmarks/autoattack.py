"""How long does AutoAttack take here, and in the official implementation? Same weights, same points, float32, one run.

    python benchmarks/autoattack.py --digits=runs/digits --plain=runs/plain --models=digits,plain,xcit --repeats=3

Needs the official code, `pip install pyautoattack timm`, and two run folders: `configs/digits.py`, and the same model
trained without an attack (`configs/digits.py:standard`). Every measurement is a process of its own, so nothing is
compiled, cached or warm before it; the two sides alternate. The clock runs over the evaluation alone: imports, weights
and data are there before it starts. PyTorch runs in eval mode with all cores, fused attention, and weights that ask for
no gradient. `compile included` is a first evaluation without a persistent cache, `without compile` a second one in the
same process.

Writes `benchmarks/results/autoattack.json` and `.md`.
"""

import argparse
import functools
import json
import logging
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "autoattack.json"
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
STEPS = {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
BATCH = 250  # of the official code, its default
SIDES = ("ours", "official")
GOALS = {"digits": ("seconds", 0.7), "plain": ("seconds", 0.3), "xcit": ("warm_seconds", 1.0)}
PACKAGES = {"ours": ("jax", "jaxlib", "flax", "numpy"), "official": ("pyautoattack", "torch", "timm")}


def main() -> None:
    options = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # of both sides
    if options.side:
        measured = {"ours": ours, "official": official, "prepare": prepare}[options.side](options)
        pathlib.Path(options.out).write_text(json.dumps(measured))
        return
    report = {
        "command": " ".join(["python", "benchmarks/autoattack.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "models": json.loads(RESULTS.read_text())["models"] if options.merge and RESULTS.exists() else {},
    }
    for name in options.models.split(","):
        report["models"][name] = {"command": report["command"], **compare(name, options)}
        options.results.parent.mkdir(exist_ok=True)
        options.results.write_text(json.dumps(report, indent=1) + "\n")
        options.results.with_suffix(".md").write_text(table(report))
    print(table(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="digits,plain,xcit", help="comma-separated, of: digits, plain, xcit")
    parser.add_argument("--digits", default="runs/digits", help="run folder of the adversarially trained model")
    parser.add_argument("--plain", default="runs/plain", help="run folder of the same model trained without attack")
    parser.add_argument("--points", type=int, default=360, help="how many test points")
    parser.add_argument("--budget", type=float, default=1.0, help="multiplies steps and queries, on both sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores for either side")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices for ours")
    parser.add_argument("--merge", action="store_true", help="keep the results of models that are not run")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--sides", default=",".join(SIDES), help="for development: one side alone")
    for name in ("side", "model", "folder", "out"):  # of the processes that measure
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures both sides `repeats` times, alternating."""
    sides, load = options.sides.split(","), os.getloadavg()[0]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        process("prepare", model, folder, options)
        for repeat in range(options.repeats):
            for side in sides if repeat % 2 == 0 else sides[::-1]:
                runs[side].append(process(side, model, folder, options))
                last = runs[side][-1]
                print(f"{model} {side}: {last['seconds']:.1f} s, robust {last['robust_accuracy']:.4f}", flush=True)
    settings = {"points": options.points, "budget": options.budget, "batch_size": BATCH, "cores": options.threads}
    return settings | {"load_before": load} | runs | summary(runs)


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the repeats, and ours over theirs."""
    middle = {side: medians(found) for side, found in runs.items()}
    if len(middle) < len(SIDES):
        return {"median": middle}
    first, second = (middle[side] for side in SIDES)
    ratio = {field: first[field] / second["seconds"] for field in ("seconds", "warm_seconds") if field in first}
    for field in ("processor_seconds", "warm_processor_seconds"):
        ratio |= {field: first[field] / second["processor_seconds"]} if field in first else {}
    apart = 100 * (first["robust_accuracy"] - second["robust_accuracy"])
    return {"median": middle, "ratio": ratio, "robust_accuracy_difference_points": apart}


def medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    fields = [name for name, value in found[0].items() if isinstance(value, float)]
    split = {name: statistics.median(run["split"][name]["seconds"] for run in found) for name in found[0]["split"]}
    return {name: statistics.median(run[name] for run in found) for name in fields} | {"split": split}


def process(side: str, model: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    out = pathlib.Path(folder) / f"{side}.json"
    more = ["--side", side, "--model", model, "--folder", folder, "--out", str(out)]
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false")
    subprocess.run([sys.executable, *sys.argv, *more], check=True, env=environment)
    return json.loads(out.read_text())


# Ours -----------------------------------------------------------------------------------------------------------------


def subject(options: argparse.Namespace) -> tuple[Any, Any, np.ndarray, np.ndarray | None, float]:
    """(module, variables, images [N,H,W,C], labels [N] or None, epsilon) of a model."""
    import jax

    from robust_vit import models, pixels
    from robust_vit.evaluate import split_batches
    from robust_vit.training import checkpoint

    if options.model == "xcit":  # untrained: what it costs does not depend on what it knows
        module = models.build("xcit_nano_12_p4_32")
        images = np.random.default_rng(0).random((options.points, 32, 32, 3), np.float32)
        return module, models.init(module, jax.random.key(0)), images, None, 1 / 255
    config, module, variables, _ = checkpoint.load(getattr(options, options.model))
    batches, _ = split_batches(config, "test", limit=options.points)
    taken = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
    images, labels = (np.concatenate(column) for column in zip(*taken))
    images = pixels.as_float(images)
    return module, variables, images, labels, float(config.attack.epsilon)


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Writes what both sides share: points, logits to compare, weights by timm's names."""
    from robust_vit.models.parts import positions
    from robust_vit.models.weights import torch_weights

    module, variables, images, labels, epsilon = subject(options)
    logits = np.asarray(module.apply(variables, images))
    labels = logits.argmax(-1) if labels is None else labels
    weights = torch_weights.to_timm(module, variables)
    if getattr(module, "positions", "") == "sinusoidal":
        weights["pos_embed"] = np.asarray(positions.sinusoidal(module.grid[0] * module.grid[1], module.width))[None]
    shared = {"images": images, "labels": labels, "logits": logits, "epsilon": epsilon}
    shared |= {"mean": np.float32(module.mean), "std": np.float32(module.std)}
    np.savez(pathlib.Path(options.folder) / "points.npz", **shared)
    np.savez(pathlib.Path(options.folder) / "weights.npz", **weights)
    return {}


def shared(options: argparse.Namespace, name: str = "points") -> dict[str, np.ndarray]:
    return dict(np.load(pathlib.Path(options.folder) / f"{name}.npz"))


def ours(options: argparse.Namespace) -> dict[str, Any]:
    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    from robust_vit import models, parallel
    from robust_vit.evaluation.autoattack.driver import autoattack
    from robust_vit.models.parts import forms

    module, variables, *_ = subject(options)
    points = shared(options)
    logits_fn = models.logits_fn(*forms.scanned(module, variables))  # as the command line does
    run = functools.partial(
        autoattack, logits_fn, points["images"], points["labels"].astype(np.int32), norm="linf",
        epsilon=float(points["epsilon"]), batch_size=len(points["images"]), budget=options.budget,
        mesh=parallel.mesh() if options.devices > 1 else None,
    )  # fmt: skip
    result, measured = timed(run)
    fields = ("points", "broken", "seconds", "compile_seconds", "forwards", "gradients")
    measured["robust_accuracy"] = float(result.robust.mean())
    measured["compile_seconds"] = float(sum(row.compile_seconds for row in result.rows))
    measured["split"] = {row.attack: {name: getattr(row, name) for name in fields} for row in result.rows}
    if options.model == "xcit":
        again, warm = timed(run)
        measured |= {f"warm_{name}": value for name, value in warm.items()}
        measured["warm_split"] = {row.attack: {name: getattr(row, name) for name in fields} for row in again.rows}
    return measured | {"versions": versions("ours")}


def timed(run: Any) -> tuple[Any, dict[str, Any]]:
    """Wall and processor seconds of a call."""
    wall, busy = time.perf_counter(), time.process_time()
    result = run()
    return result, {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - busy}


# The official implementation ------------------------------------------------------------------------------------------


class Clock(logging.Handler):
    """Reads the time off when the official code says that an attack is over."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.times: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith("robust accuracy after "):
            self.times[said.split()[3].rstrip(":").lower()] = time.perf_counter()
        elif said.startswith("initial accuracy"):
            self.times["clean"] = time.perf_counter()


def official(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    model, points = torch_model(options), shared(options)
    images = torch.from_numpy(points["images"].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        apart = float(np.abs(model(images).numpy() - points["logits"]).max())
    if apart > 1e-4:
        raise ValueError(f"logits differ by {apart}: must be the same model, within 1e-4")
    import pyautoattack

    clock, logger = Clock(), logging.getLogger("auto-attack")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(clock)
    logger.propagate = False
    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=float(points["epsilon"]), version="standard", seed=0)
    shorten(attack, options.budget)
    labels = torch.from_numpy(points["labels"].astype(np.int64))
    began = time.perf_counter()
    (adversarial, _), measured = timed(lambda: attack.run_standard_evaluation(images, labels, batch_size=BATCH))
    with torch.no_grad():
        robust = (model(adversarial).argmax(-1) == labels).numpy()
    measured |= {"robust_accuracy": float(robust.mean()), "largest_difference_of_logits": apart}
    order = [name for name in ("clean", *ATTACKS) if name in clock.times]
    times = [began, *(clock.times[name] for name in order)]
    measured["split"] = {name: {"seconds": after - before} for name, before, after in zip(order, times, times[1:])}
    return measured | {"versions": versions("official"), "threads": torch.get_num_threads()}


def shorten(attack: Any, budget: float) -> None:
    """Multiplies steps and queries, as `budget` does on our side."""
    steps = {name: max(1, round(count * budget)) for name, count in STEPS.items()}
    attack.apgd.n_iter, attack.apgd_targeted.n_iter = steps["apgd-ce"], steps["apgd-t"]
    attack.fab.n_iter, attack.square.n_queries = steps["fab-t"], steps["square"]


def torch_model(options: argparse.Namespace) -> Any:
    """timm's model with our weights, normalisation inside."""
    import torch

    timm = import_timm()
    if options.model == "xcit":
        model = timm.create_model("xcit_nano_12_p16_224", num_classes=10)
        for i in (0, 2):  # patch 4: the stem strides in its last two convolutions only
            model.patch_embed.proj[i][0].stride = (1, 1)
    else:
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4,
            class_token=False, global_pool="avg",
        )  # fmt: skip
    model.load_state_dict({name: torch.from_numpy(array) for name, array in shared(options, "weights").items()})
    points = shared(options)
    mean, std = (torch.from_numpy(points[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model((images - mean) / std if mean.numel() else images)

    return Normalised().eval().requires_grad_(False)


def import_timm() -> Any:
    """timm, also where a torchvision made for another build of torch cannot register its operators; none is used."""
    import torch

    try:
        import timm
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor x) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        import timm

        timm.kept = library
    return timm


# The report -----------------------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count()}


def versions(side: str) -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES[side]}


def table(report: dict[str, Any]) -> str:
    """The medians as markdown."""
    commands = dict.fromkeys(entry["command"] for entry in report["models"].values())
    lines = [*(f"`{command}`" for command in commands), ""]
    lines += [f"{report['hardware']['cpu']}, {report['hardware']['cores']} cores.", ""]
    columns = ("model", "points, budget, cores", "side", "robust", "total s", "processor s", "compile s", *ATTACKS)
    lines += [f"| {' | '.join(columns)} |", "|---|---|---" + (len(columns) - 3) * "|--:" + "|"]
    for name, entry in report["models"].items():
        for side, middle in entry["median"].items():
            split = [f"{middle['split'].get(attack, 0.0):.1f}" for attack in ATTACKS]
            compiling = f"{middle['compile_seconds']:.1f}" if "compile_seconds" in middle else ""
            total, spent = f"{middle['seconds']:.1f}", f"{middle['processor_seconds']:.1f}"
            if "warm_seconds" in middle:
                total += f" ({middle['warm_seconds']:.1f} without compile)"
            which = f"{entry['points']}, {entry['budget']:g}, {entry['cores']}"
            row = [name, which, side, f"{100 * middle['robust_accuracy']:.2f} %", total, spent, compiling, *split]
            lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    for name, entry in report["models"].items():
        if "ratio" not in entry:
            continue
        field, goal = GOALS[name]
        kind = "without compile" if field == "warm_seconds" else "compile included"
        repeats = len(entry["ours"])
        apart = entry["robust_accuracy_difference_points"]
        lines.append(
            f"* {name}: {entry['ratio'][field]:.2f}x the official wall time and "
            f"{entry['ratio'][field.replace('seconds', 'processor_seconds')]:.2f}x its processor time, {kind} (goal "
            f"{goal}x; {repeats} repeats); robust accuracy {apart:+.2f} points apart; load of the machine before: "
            f"{entry['load_before']:.1f}."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

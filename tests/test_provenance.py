"""Where figures come from, and files that are whole or not there."""

import json
import os
import subprocess
import sys

import pytest

from robust_vit import provenance


def test_environment_names_versions_devices_revision_and_command():
    found = provenance.environment()
    assert {"python", "robust-vit", "jax", "jaxlib", "flax"} <= set(found["versions"])
    assert found["devices"]["count"] == 8 and found["devices"]["kind"].startswith("cpu")
    assert found["devices"]["hosts"] == 1 and found["command"] and found["platform"]
    assert "no-such-package" not in provenance.versions(["no-such-package"])
    assert json.loads(json.dumps(found)) == found


def test_the_command_is_as_it_was_typed(tmp_path):
    (tmp_path / "job.py").write_text("from robust_vit import provenance; print(provenance.command())")
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    run["env"] = os.environ | {"PYTHONPATH": f"{os.getcwd()}:{tmp_path}", "JAX_PLATFORMS": "cpu"}
    by_module = subprocess.run([sys.executable, "-m", "job", "--a=1"], **run).stdout.split()
    by_path = subprocess.run([sys.executable, "job.py", "--a=1"], **run).stdout.split()
    assert by_module[1:] == ["-m", "job", "--a=1"] and by_path[1:] == ["job.py", "--a=1"]
    assert by_module[0].startswith("python")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "value.json"
    provenance.write_json(path, {"a": 1})
    assert provenance.read_json(path) == {"a": 1}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        provenance.write_json(path, {"a": 2})
    assert provenance.read_json(path) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_not_a_number_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        provenance.write_json(tmp_path / "value.json", {"loss": float("nan")})


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ('{"a": ', "is no JSON"), ("[1]", "holds a list, must be a JSON object")]
)
def test_a_torn_file_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'config.json'}: {message}.*$"):
        provenance.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("torn", [b'{"b": ', b'{"b": "\xc3', b""])
def test_lines_but_for_a_torn_last_one(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + torn)
    assert provenance.read_lines(path) == [{"a": 1}, {"a": 2}]
    provenance.cut_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("damaged", [b"{", b"3", b"", b"\xff"])
def test_a_damaged_line_in_between_is_named(tmp_path, damaged):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damaged + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        provenance.read_lines(path)

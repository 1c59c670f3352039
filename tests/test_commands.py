"""What a user can mend is one line; a reader that goes away costs nothing but the output."""

import errno
import subprocess
import sys

import pytest

from robust_vit import commands, errors


def failing(error):
    def function(arguments):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("epsilon = -1: must be at least 0"), "error: epsilon = -1: must be at least 0"),
        (errors.Mendable("step 7: loss is not finite"), "error: step 7: loss is not finite"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), "no such file or directory: a.png"),
        (OSError(errno.ENOSPC, "No space left on device", "w.npz"), "no space left on device: w.npz; make space"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/a"), "error: not a directory: runs/a"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line):
    with pytest.raises(SystemExit) as stop:
        commands.run(failing(error), ["x"])
    assert line in str(stop.value) and "\n" not in str(stop.value)


def test_a_full_disk_is_found_through_what_wraps_it():
    wrapped = RuntimeError("commit failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "no space left" in commands.explained(wrapped)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(KeyError):
        commands.run(failing(KeyError("x")), ["x"])


def test_ctrl_c_has_its_own_status(capsys):
    with pytest.raises(SystemExit) as stop:
        commands.run(failing(KeyboardInterrupt()), ["x"])
    assert stop.value.code == commands.INTERRUPTED and "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_does_not_end_the_work(tmp_path):
    program = (
        "import pathlib, sys; from robust_vit import commands\n"
        "def work(arguments):\n"
        "    for line in range(20000): print('line', line, flush=True)\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).write_text('all')\n"
        "commands.run(work, ['x'])"
    )
    shell = f'"{sys.executable}" -c "$PROGRAM" | head -1'
    done = subprocess.run(["bash", "-c", shell], env={"PROGRAM": program, "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.stdout == b"line 0\n" and done.stderr == b"" and (tmp_path / "done").read_text() == "all"


def test_a_misspelt_command_is_named():
    with pytest.raises(SystemExit, match="command = 'trian'.*did you mean 'train'"):
        commands.main(["robust-vit", "trian"])


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    try:
        commands.main(["robust-vit", name, "--help"])
    except SystemExit as end:  # argparse's way
        assert end.code == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 4 and (f"robust-vit {name}" in out or "python -m robust_vit" in out)

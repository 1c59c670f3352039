"""A folder has one writer: a live holder is named, a dead one is replaced."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from robust_vit import locks

HOLDER = """
import sys, time
from robust_vit import locks
with locks.hold(sys.argv[1], "workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def holder(tmp_path_factory):
    """A folder that another process holds, and that process."""
    folder = tmp_path_factory.mktemp("held")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_a_live_holder_is_named_and_a_killed_one_replaced_with_a_note(holder, capsys):
    folder, process = holder
    line = rf"^workdir = '{folder}': in use by pid {process.pid} on .* since 20.*, python.* -c {folder}; wait.*$"
    with pytest.raises(ValueError, match=line), locks.hold(folder, "workdir"):
        raise AssertionError("entered a folder that is in use")
    assert json.loads((folder / locks.NAME).read_text())["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie until somebody reaps it
    with locks.hold(folder, "workdir"):
        assert json.loads((folder / locks.NAME).read_text())["pid"] == os.getpid()
    assert f"took over the lock of pid {process.pid}" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_folder_is_free_after_use_and_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locks.hold(tmp_path / "new" / "run"):
        raise RuntimeError
    with locks.hold(tmp_path / "new" / "run"):
        pass
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path):
    with (
        locks.hold(tmp_path, "ledger"),
        pytest.raises(ValueError, match=r"ledger = .*this very process"),
        locks.hold(tmp_path, "ledger"),
    ):
        pass
    with locks.hold(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"process": "an earlier process of this number"}])
def test_no_such_process_or_another_start_time_is_stale(tmp_path, change):
    (tmp_path / locks.NAME).write_text(json.dumps(locks._describe() | change))
    notes = []
    with locks.hold(tmp_path, say=notes.append):
        pass
    assert len(notes) == 1 and notes[0].endswith("which is gone")


@pytest.mark.parametrize("content", ["", '{"host": "a', "[]"])
def test_a_torn_lock_is_taken_over(tmp_path, content):
    (tmp_path / locks.NAME).write_text(content)
    notes = []
    with locks.hold(tmp_path, say=notes.append):
        pass
    assert "unreadable lock" in notes[0]


def test_another_host_is_named_with_what_to_remove(tmp_path):
    (tmp_path / locks.NAME).write_text(json.dumps(locks._describe() | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match=r"on elsewhere since .*; if that run is over, remove .*lock\.json$"):
        with locks.hold(tmp_path):
            pass


def test_a_lock_that_was_replaced_by_hand_is_left_to_its_owner(tmp_path):
    with locks.hold(tmp_path):
        (tmp_path / locks.NAME).write_text(json.dumps(locks._describe()))
    assert (tmp_path / locks.NAME).exists()


def test_without_hard_links_one_of_many_gets_the_lock(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / locks.NAME).write_text(json.dumps(locks._describe() | {"process": "gone"}))
    entered, refused, release = [], [], threading.Event()

    def contend():
        try:
            with locks.hold(tmp_path, say=lambda note: None):
                entered.append(1)
                release.wait(10)
        except ValueError:
            refused.append(1)
        if len(refused) == 7:
            release.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)

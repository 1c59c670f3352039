"""The flags of a job of several processes, and what is said of those that differ; `test_two_hosts` has real ones."""

import socket

import jax
import pytest
from absl import flags

from robust_vit import hosts, parallel


def given(*arguments):
    values = flags.FlagValues()
    hosts.define(values)
    values(["train", *arguments])
    return values


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--coordinator=first"], "coordinator = 'first': must be HOST:PORT of the first process"),
        (["--coordinator=first:x", "--processes=2", "--process=0"], "coordinator = 'first:x': must be HOST:PORT"),
        (["--coordinator=first:1"], "processes = None: must be given with --coordinator, at least 1"),
        (["--coordinator=first:1", "--processes=2"], "process = None: must be given, in [0, 2)"),
        (["--coordinator=first:1", "--processes=2", "--process=2"], "process = 2: must be given, in [0, 2)"),
        (["--processes=2"], "processes = 2: must be left out without --coordinator"),
        (["--process=1"], "process = 1: must be left out without --coordinator"),
        (["--distributed", "--timeout=0"], "timeout = 0: must be a number of seconds above 0"),
    ],
)
def test_bad_flags_are_one_line(arguments, line):
    with pytest.raises(ValueError) as raised:
        hosts.join(given(*arguments))
    assert line in str(raised.value)


def test_flags_reach_jax(monkeypatch):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **more: called.append((place, more)))
    monkeypatch.setattr(parallel, "reach", lambda *address: None)
    hosts.join(given())
    hosts.join(given("--distributed"))
    hosts.join(given("--coordinator=first:1234", "--processes=4", "--process=3", "--timeout=7"))
    silence = {"heartbeat_timeout_seconds": parallel.SILENCE}
    assert called[0] == ((None, None, None), {"initialization_timeout": parallel.PATIENCE} | silence)
    assert called[1] == (("first:1234", 4, 3), {"initialization_timeout": 7} | silence)


def test_a_coordinator_that_is_not_reached_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier\ntimed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"coordinator = 'first:1': not joined within 7 s: DEADLINE_EXCEEDED: Barrier"):
        parallel.initialize("first:1", 2, 0, timeout=7)
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        address = f"localhost:{listening.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"coordinator = '{address}': not reached within 0.1 s: "):
            parallel.initialize(address, 2, 1, timeout=0.1)
        listening.listen()
        parallel.reach(address, 0.1)


def test_the_first_field_that_differs_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    other = {}
    monkeypatch.setattr(parallel, "gather_text", lambda text: [text, text.replace(*other["instead"])])
    other["instead"] = ("nothing", "else")
    hosts.check_alike({"config": {"seed": 7, "attack": {"steps": 3}}})
    other["instead"] = ('"steps": 3', '"steps": 5')
    with pytest.raises(ValueError, match=r"process 1 \(.*\): config.attack.steps = 5, 3 of the first; all processes"):
        hosts.check_alike({"config": {"seed": 7, "attack": {"steps": 3}}})
    version = jax.__version__
    other["instead"] = (f'"jax": "{version}"', '"jax": "0.0.1"')
    with pytest.raises(ValueError, match=r"process 1 \(.*\): versions.jax = '0.0.1'"):
        hosts.check_alike({"config": {}})


def test_a_collective_that_fails_is_one_line_and_what_fails_alone_is_not_touched(monkeypatch):
    def fail():
        with hosts.watched():
            raise jax.errors.JaxRuntimeError("INTERNAL: connection\nclosed by peer")

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        hosts.JobError, match="process 0 of 2: another process of the job has died or cannot be reached"
    ):
        fail()

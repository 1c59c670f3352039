"""Models that are not JAX's: PyTorch's logits and gradients arrive as they are, NumPy's have none, nothing locks up."""

import concurrent.futures
import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_vit as rv
from robust_vit.evaluation import fingerprint, masking
from robust_vit.host_call import host_call

RANK_PROMOTION = "allow"  # of the models that are made here

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SHAPE = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")


def linear(images):
    """Ten logits of 8x8x3 images."""
    weights = np.random.default_rng(0).normal(size=(192, 10))
    return (images.reshape(len(images), -1) - 0.5) @ weights


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(0), (6, 8, 8, 3))


# --- calls from compiled programs


def test_a_host_call_is_the_function_eager_compiled_and_mapped():
    def gather(x, y):
        return np.float32(np.sum(x, axis=-1) + y)

    x, y = jnp.arange(24.0).reshape(4, 6), jnp.arange(4.0)
    call = lambda x, y: host_call(gather, jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32), x, y)  # noqa: E731
    expected = np.sum(x, axis=-1) + y
    for made in (call, jax.jit(call), jax.vmap(call), jax.jit(jax.vmap(call, in_axes=(0, 0)))):
        np.testing.assert_array_equal(made(x, y), expected)
    shared = jax.jit(jax.vmap(call, in_axes=(None, 1), out_axes=1))(x, jnp.stack([y, y + 1], axis=1))
    np.testing.assert_array_equal(shared, np.stack([expected, expected + 1], axis=1))


def test_a_host_call_over_several_devices_is_made_once(images):
    mesh, shapes = rv.parallel.mesh(2), []

    def call(x):
        shapes.append(x.shape)
        return np.float32(x.sum((1, 2, 3)))

    run = lambda x: host_call(call, jax.ShapeDtypeStruct(x.shape[:1], jnp.float32), x)  # noqa: E731
    found = rv.parallel.compile(run, mesh, arguments="b", results="b")(rv.parallel.global_batch(mesh, images))
    np.testing.assert_allclose(found, images.sum((1, 2, 3)), rtol=1e-5)
    assert shapes == [(6, 8, 8, 3)]


def test_what_a_host_call_returns_is_checked():
    call = jax.jit(lambda x: host_call(lambda x: x.sum(), jax.ShapeDtypeStruct((2,), jnp.float32), x))
    with pytest.raises(Exception, match=r"returned float32\[\], must be float32\[2\]"):
        call(jnp.ones(3)).block_until_ready()


def test_large_arrays_do_not_lock_up_on_one_core():
    """`jax.pure_callback` hangs here: the only thread waits for a copy that only it could make."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import robust_vit as rv, jax, numpy as np\n"
        "model = rv.from_numpy(lambda x: np.float32(x.reshape(len(x), -1)[:, :3]), classes=3)\n"
        "print(jax.jit(lambda f, x: f(x))(model, np.ones((8, 128, 128, 3), np.float32)).sum())"
    )
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot keep a process on one core")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "24.0", done.stderr


# --- NumPy


def test_a_numpy_function_is_measured_and_attacked_without_gradient(images):
    labels = linear(np.asarray(images)).argmax(1)
    classifier = rv.Classifier(rv.from_numpy(linear, classes=10), threat="linf-0.3", name="linear")
    np.testing.assert_array_equal(classifier.predict(images), labels)
    result = classifier.evaluate("clean", (np.asarray(images), labels), say=lambda line: None)
    assert result["clean"]["accuracy"] == 1.0
    adversarial = classifier.attack("square", images, labels, queries=60)
    assert np.any(classifier.predict(adversarial) != labels)


def test_a_numpy_function_may_write_into_its_images_and_is_called_by_one_thread_at_a_time(images):
    inside = []

    def function(x):
        inside.append(1)
        assert len(inside) == 1
        x *= 2
        inside.pop()
        return linear(x)

    run = jax.jit(lambda f, x: f(x))
    model = rv.from_numpy(function, classes=10)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: np.asarray(run(model, images)), range(8)):
            np.testing.assert_allclose(found, linear(2 * np.asarray(images)), rtol=1e-4, atol=1e-4)


NUMPY_ERRORS = {
    "gradient": (lambda x: jax.grad(lambda x: rv.from_numpy(linear, 10)(x).sum())(x), "gradient: a function called on"),
    "gradient attack": (
        lambda x: rv.Classifier(rv.from_numpy(linear, 10), threat="linf-0.1").attack("pgd", x, np.arange(6)),
        "gradient: a function called on the host has none; use attacks that need none, such as square",
    ),
    "function": (lambda x: rv.from_numpy(3, 10), "function = 3: must be callable"),
    "classes": (lambda x: rv.from_numpy(linear, 1), "classes = 1: must be at least 2"),
}


@pytest.mark.parametrize("case", NUMPY_ERRORS)
def test_what_a_numpy_function_cannot_do_is_said_in_one_line(case, images):
    make, message = NUMPY_ERRORS[case]
    with pytest.raises(ValueError, match=message) as caught:
        make(images)
    assert "\n" not in str(caught.value)


# --- PyTorch

peers = pytest.mark.peers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch (.[peers])")


@pytest.fixture
def network(torch):
    """With dropout and batch normalisation, which must be in evaluation mode."""
    torch.manual_seed(0)
    nn = torch.nn
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(512, 10)).train()


def reference(torch, network, images):
    """PyTorch's own logits, and the gradient of their log-sum-exp."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    points = torch.tensor(np.array(images).transpose(0, 3, 1, 2), requires_grad=True)
    logits = network.eval()((points - mean) / std)
    (gradient,) = torch.autograd.grad(torch.logsumexp(logits, 1).sum(), points)
    return logits.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)


@peers
def test_logits_and_gradients_are_pytorchs(torch, network, images):
    model = rv.from_torch(network, mean=MEAN, std=STD)
    logits, gradient = reference(torch, network, images)
    total = lambda x: jax.nn.logsumexp(model(x), axis=-1).sum()  # noqa: E731
    np.testing.assert_allclose(model(images), logits, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(model, images), logits, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(images), gradient, atol=1e-5)
    mapped = jax.jit(jax.vmap(jax.grad(total)))(images.reshape(2, 3, 8, 8, 3))
    np.testing.assert_allclose(mapped.reshape(images.shape), gradient, atol=1e-5)
    basis = jax.vmap(jax.vjp(model, images)[1])(jnp.eye(10)[:, None] * jnp.ones((10, 6, 1)))[0]  # [K,B,H,W,C]
    weights = jax.nn.softmax(jnp.asarray(logits))
    np.testing.assert_allclose(jnp.einsum("kbhwc,bk->bhwc", basis, weights), gradient, atol=1e-5)


@peers
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_network_in_another_precision_gives_float32_logits(dtype, torch, network, images):
    model = rv.from_torch(network.to(getattr(torch, dtype)))
    assert model(images).dtype == jnp.float32
    assert jax.grad(lambda x: model(x).sum())(images).dtype == jnp.float32


@peers
def test_parameters_collect_no_gradients(torch, network, images):
    model = rv.from_torch(network)
    jax.grad(lambda x: model(x).sum())(images)
    assert all(parameter.grad is None for parameter in network.parameters())


@peers
def test_attacks_and_autoattack_on_two_tiles(torch, network, images):
    classifier = rv.Classifier(rv.from_torch(network, mean=MEAN, std=STD), threat="linf-8/255")
    assert repr(classifier) == "Sequential, 5.37k weights, Linf 8/255"
    many = np.asarray(jax.random.uniform(jax.random.key(1), (40, 8, 8, 3)))
    labels = classifier.predict(many)
    moved = classifier.attack("pgd", many, labels, steps=3)
    assert np.mean(classifier.predict(moved) != labels) > 0.5
    found = rv.evaluation.autoattack(
        classifier, many, labels, norm="linf", epsilon=2 / 255, version=["apgd-ce", "square"], budget=0.05, tile=16
    )
    assert 0 < found.robust_accuracy < 1 and found.verification.claimed == found.verification.confirmed.sum()


@peers
def test_the_masking_report_says_that_it_leaves_jax(torch, network, images):
    model = rv.from_torch(network)
    labels = np.argmax(model(images), axis=-1)
    report = masking.report(model, np.asarray(images), labels, norm="linf", epsilon=2 / 255, queries=20)
    assert any("callback" in str(finding) for finding in report.findings)


@peers
def test_its_identity_is_that_of_its_weights(torch, network):
    first = fingerprint.identify(rv.from_torch(network), SHAPE)
    assert first == fingerprint.identify(rv.from_torch(network), SHAPE)
    assert first != fingerprint.identify(rv.from_torch(network, mean=MEAN, std=STD), SHAPE)
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1
    assert first != fingerprint.identify(rv.from_torch(network), SHAPE)


@peers
def test_what_a_network_cannot_do_is_said_in_one_line(torch, network, images):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    class Flat(torch.nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3))

    cases = {
        "network = 'Callable': must be a torch.nn.Module": lambda: rv.from_torch(type("Callable", (), {})()),
        "network = Pair: returns a tuple, must return a tensor": lambda: rv.from_torch(Pair())(images),
        r"network = Flat: logits of images .* = \[2\]: must be floats \[2,K\]": lambda: rv.from_torch(Flat())(images),
        r"network = Sequential: fails on images \[2, 1, 8, 8\]: Given groups=1": lambda: rv.from_torch(network)(
            images[..., :1]
        ),
        r"mean = \(0.5, 0.4, 0.3\): must be one value, or 1": lambda: rv.from_torch(network, mean=MEAN, std=STD)(
            images[..., :1]
        ),
        "mean and std = .*: must be of one length": lambda: rv.from_torch(network, mean=MEAN),
        "std = .*: must be above 0": lambda: rv.from_torch(network, mean=(0.5,), std=(0.0,)),
    }
    for message, make in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


@peers
def test_the_command_takes_a_module_and_its_normalisation(torch, network, images, tmp_path, monkeypatch):
    """`evaluate --torch=module:function`."""
    from robust_vit import subject

    (tmp_path / "nets.py").write_text(
        "made = None\ndef plain():\n    return made\ndef normalised():\n    return MADE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    nets = importlib.import_module("nets")
    nets.made, nets.MADE = network, (network, MEAN, STD)
    for name, keywords in (("nets:plain", {}), ("nets:normalised", dict(mean=MEAN, std=STD))):
        found = subject.from_torch(name, rv.config.base())
        np.testing.assert_array_equal(found.logits_fn(images), rv.from_torch(network, **keywords)(images))
        assert found.weights == {"step": None, "torch": name}

"""AutoAttack and its relatives on a set of points: the worst case over an ensemble of attacks, point by point.

    result = autoattack(logits_fn, images, labels, norm="linf", epsilon=8 / 255, workdir="runs/a/autoattack")
    print(result.table())

A point counts as robust if it is classified correctly and no attack of the ensemble breaks it. Every attack starts
from the clean image and sees only the points that are still robust. The keys are folded from (seed, dataset index,
attack, restart, target rank), and every attack runs in a tile of one shape, so
the answer does not depend on `batch_size`, the order of the points, the number of devices, or whether the run was
killed and resumed.

Which attacks: `ensembles`. How they share the device: `scheduling`. What is kept: `ledger`. What counts as a success:
`verification`.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import errors, randomness
from robust_vit.evaluation import fingerprint, verification
from robust_vit.evaluation.autoattack import arguments as plans
from robust_vit.evaluation.autoattack import checks, ensembles, runs
from robust_vit.evaluation.autoattack.arguments import FLOAT32, Plan
from robust_vit.evaluation.autoattack.ensembles import Part
from robust_vit.evaluation.autoattack.ledger import CLEAN, Ledger, Outcome
from robust_vit.evaluation.autoattack.results import AttackRow, Result
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling import scheduler
from robust_vit.evaluation.scheduling.scheduler import BROKEN, NONFINITE, SURVIVED
from robust_vit.evaluation.verification import ROBUST, WRONG, Judge
from robust_vit.pixels import as_float
from robust_vit.typing import LogitsFn

FLUSH_SECONDS = 30.0
RESULT = "result.json"  # in the ledger's folder, once the evaluation is complete
Event = dict[str, Any]


def autoattack(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str,
    epsilon: float | np.ndarray,
    version: str | Sequence[str] = "standard",
    batch_size: int = 250,
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    indices: np.ndarray | None = None,
    tile: int | None = None,
    forward_tile: int | None = None,
    budget: float = 1.0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    compute_dtype: str = FLOAT32,
    attack_logits_fn: LogitsFn | None = None,
    stochastic: bool = False,
    mesh: Mesh | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Runs an ensemble of attacks on every point and reports what stands.

    Args:
      logits_fn: the model, images [B,H,W,C] in [0,1] -> logits [B,K]: any callable, best a pytree whose leaves are its
        weights (`callables.as_logits_fn`).
      images: [N,H,W,C] floats in [0,1], or uint8; may be a memory map.
      labels: [N] integers in [0, K).
      norm: "linf", "l2" or "l1".
      epsilon: radius in units of the [0,1] pixel range; one for all points or [N].
      version: a name of `ensembles.VERSIONS` or a list of attack names, in the order to run them.
      batch_size: most points in play at once, and outcomes between two writes of the ledger. Changes no result.
      seed: of the whole evaluation.
      workdir: folder of the ledger; an evaluation found there is resumed. None keeps nothing.
      indices: [N] dataset indices, which name the points in keys and ledger; 0 .. N-1 by default.
      tile: slots of the compiled programs, the memory to set (two tiles are in flight). Default 32 on CPU, 128
        elsewhere.
      forward_tile: the same for attacks that need no gradient. Default 32 on CPU, 512 elsewhere.
      budget: multiplies all steps and queries, for a quick look; the result is then an upper bound.
      settings: {attack: {"steps", "restarts", "targets", "loss", "eot", ...}}, see `ensembles.Part`.
      compute_dtype: "float32", or "bfloat16" to attack the model in that precision; a claim counts only if float32
        confirms it, and items whose claim is refused are run again in float32.
      attack_logits_fn: the model in that precision, where it is no flax module with a `dtype` field.
      stochastic: the model is called as logits_fn(images, keys [B]); use version "rand".
      mesh: devices to split the tiles over (`parallel.mesh`); one device by default.
      on_event: called with {"event": "clean" | "attack" | "outcome" | "attack_done", ...} as things happen; what it
        raises ends the run.

    Returns:
      A `results.Result`.

    Raises:
      ValueError: if an argument is out of range, or `workdir` holds the ledger of another evaluation.

    Reference: Croce & Hein, 2020, https://arxiv.org/abs/2003.01690
    """
    points = plans.points(images, labels, norm, epsilon, indices)
    tiles = plans.tile(tile, 32, 128, mesh), plans.tile(forward_tile, 32, 512, mesh)
    plan = Plan(norm, seed, batch_size, *tiles, compute_dtype, stochastic, mesh)
    logits_fn = plans.classifier(logits_fn, points, stochastic)
    chosen = ensembles.parts(version, norm, budget, settings)
    low = None if compute_dtype == FLOAT32 else attack_logits_fn or runs.in_dtype(logits_fn, compute_dtype)
    evaluation = _Evaluation(logits_fn, low, points, plan, on_event or (lambda event: None))
    if budget != 1 or settings:
        evaluation.notes.append("the settings of the attacks are not those of the version: see the configuration")
    evaluation.look()
    evaluation.open(workdir, version, chosen)
    for part in chosen:
        evaluation.attack(part)
    result = evaluation.result(version)
    if workdir is not None:
        path = pathlib.Path(workdir) / RESULT
        path.with_suffix(".partial").write_text(json.dumps(result.to_dict(), indent=1))
        path.with_suffix(".partial").replace(path)
    return result


class _Evaluation:
    """The state of one call of `autoattack`."""

    def __init__(
        self, logits_fn: LogitsFn, low: LogitsFn | None, points: Points, plan: Plan, tell: Callable[[Event], None]
    ):
        self.logits_fn, self.low, self.points, self.plan, self.tell = logits_fn, low, points, plan, tell
        self.count = len(points.labels)
        self.judge = Judge(logits_fn, plan.fitted(self.count), plan.mesh, self._judge_keys())
        self.adversarial: dict[int, np.ndarray] = {}
        self.place: dict[int, tuple[str, int]] = {}  # row -> (attack, item) that broke it
        self.suspect: set[int] = set()  # rows where an attack met values that are not numbers
        self.claimed: set[int] = set()  # rows that the low-precision model gave up but float32 did not
        self.refused: list[str] = []  # the faults of claims that did not stand
        self.largest = 0.0
        self.rows: list[AttackRow] = []
        self.notes: list[str] = []
        self.ledger: Ledger | None = None
        self.flushed = time.monotonic()

    def look(self) -> None:
        """The clean pass: which points are there to be attacked, and what the logits look like."""
        began = time.perf_counter()
        everything = list(range(self.count))
        self.logits = self.judge.logits(self.points.images, everything)
        self.classes = self.logits.shape[1]
        errors.check("classes", self.classes, self.classes >= 2, "at least 2")
        top = int(self.points.labels.max())
        errors.check("labels", top, self.points.labels.min() >= 0 and top < self.classes, f"in [0, {self.classes})")
        wrong, finite = verification.verdict(self.logits, self.points.labels)
        self.status = np.where(~finite, NONFINITE, np.where(wrong, WRONG, ROBUST)).astype(object)
        self.clean_correct = finite & ~wrong
        self.notes += checks.clean(self.judge, self.points, self.logits, self.plan.stochastic)
        seconds, compiling = time.perf_counter() - began, self.judge.compile_seconds
        self.rows.append(
            AttackRow(
                CLEAN, self.count, self.count - int(self.clean_correct.sum()), seconds, compiling, self.count, 0, 1.0
            )
        )
        self.tell({"event": "clean", "points": self.count, "correct": int(self.clean_correct.sum())})

    def open(self, workdir: Any, version: Any, chosen: Sequence[Part]) -> None:
        """Opens the ledger, and notes the clean verdicts in a new one."""
        shape = jax.ShapeDtypeStruct((1, *self.points.images.shape[1:]), jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        points, plan = self.points, self.plan
        self.header = {
            "weights": fingerprint.weights(self.logits_fn),
            "program": fingerprint.program(self.logits_fn, shape, *([keys] if plan.stochastic else [])),
            "data": "not hashed" if workdir is None else fingerprint.data(points.images, points.labels, points.indices),
            "packages": fingerprint.packages(),
            "config": self._config(chosen),
            "order": [part.name for part in chosen],
            "version": version if isinstance(version, str) else list(version),
        }
        self.known: list[Outcome] = []
        self.stored: dict[tuple[int, str, int], np.ndarray] = {}
        if workdir is None:
            return
        self.ledger = Ledger(workdir, self.header)
        self.known, self.stored = list(self.ledger.outcomes), self.ledger.images()
        if self.known:
            self.notes.append(f"resumed: {len(self.known)} outcomes taken from {self.ledger.path}")
        told = {outcome.index for outcome in self.known if outcome.attack == CLEAN}
        for row, index in enumerate(points.indices):
            if int(index) not in told:
                status = SURVIVED if self.status[row] == ROBUST else str(self.status[row])
                self.ledger.add(Outcome(int(index), CLEAN, 0, 0, -1, status, 0))
        self.ledger.flush()

    def _config(self, chosen: Sequence[Part]) -> dict[str, Any]:
        """Everything that may change a result; the batch size and the number of devices are not in it."""
        radius = np.unique(self.points.epsilon)
        epsilon = float(str(radius[0])) if len(radius) == 1 else fingerprint.weights([self.points.epsilon])
        plan = self.plan
        names = ("norm", "seed", "tile", "forward_tile", "compute_dtype", "stochastic")
        config = {
            "epsilon": epsilon,
            **{name: getattr(plan, name) for name in names},
            "platform": jax.default_backend(),
        }
        return config | {part.name: dataclasses.asdict(part) for part in chosen}

    def attack(self, part: Part) -> None:
        """Runs one attack on the points that are still robust."""
        began = time.perf_counter()
        part, notes = ensembles.fit(part, self.classes)
        self.notes += notes
        rows = [row for row in range(self.count) if self.status[row] == ROBUST]
        self.tell({"event": "attack", "attack": part.name, "points": len(rows)})
        row = AttackRow(part.name, len(rows))
        if rows:
            self._run(part, rows, row)
        row.broken = len(rows) - sum(self.status[r] == ROBUST for r in rows)
        row.seconds = time.perf_counter() - began
        self.rows.append(row)
        self._flush(always=True)
        self.tell({"event": "attack_done", **dataclasses.asdict(row)})

    def _run(self, part: Part, rows: list[int], row: AttackRow) -> None:
        """The attack itself: in low precision first if asked, then in float32 what that could not settle."""
        if self.low is None:
            self._schedule(part, rows, self.logits_fn, FLOAT32, row)
            return
        self._schedule(part, rows, self.low, self.plan.compute_dtype, row)
        again = {outcome.index for outcome in self._of(part) if outcome.status not in (SURVIVED, BROKEN)}
        retry = [r for r in rows if self.status[r] == ROBUST and int(self.points.indices[r]) in again]
        if retry:
            self.claimed.update(retry)
            self._schedule(part, retry, self.logits_fn, FLOAT32, row)

    def _schedule(self, part: Part, rows: list[int], model: LogitsFn, dtype: str, row: AttackRow) -> None:
        run = runs.build(part, self.plan.norm, self.plan.stochastic, self.classes)
        slots = self._slots(part, len(rows))
        known = self._replay(part, rows, dtype)
        chain = self._chain(part, model)
        compiled = self.judge.compile_seconds
        tally = scheduler.schedule(
            run, model, self.points, rows, chain,
            examine=self._examine, report=self._reporter(part, chain, dtype), seed=self.plan.seed, slots=slots,
            chunk=runs.chunk(part), window=self.plan.batch_size, known=known, mesh=self.plan.mesh,
        )  # fmt: skip
        row.add(tally, runs.cost(run, part, self.classes), self.judge.compile_seconds - compiled)

    def _slots(self, part: Part, rows: int) -> int:
        """The tile of an attack. It may depend on how much work there is, never on how the work is batched."""
        free = runs.gradient_free(part)
        share = -(-(rows if free else self.count) * len(part.items) // scheduler.LANES)
        if free:
            return scheduler.balanced(share, self.plan.forward_tile, self.plan.multiple)
        return self.plan.fitted(share)

    def _chain(self, part: Part, model: LogitsFn) -> Chain:
        restarts, ranks = (np.array(column) for column in zip(*part.items))
        if not part.targets:
            targets = np.full((self.count, len(ranks)), -1)
        else:
            order = runs.targets(
                part, self.logits_fn, self.points, self.logits, self.plan.norm, self.judge.slots, self.clean_correct
            )
            targets = order[:, ranks - 1]
        return Chain(restarts, ranks, targets.astype(np.int32), ensembles.CODES[part.name])

    def _of(self, part: Part) -> list[Outcome]:
        """What is known of an attack, from the ledger and from this run."""
        return [outcome for outcome in self.known if outcome.attack == part.name]

    def _replay(self, part: Part, rows: list[int], dtype: str) -> dict[tuple[int, int], bool]:
        """Takes over the outcomes of an earlier run; returns {(row, item): broke} of what needs not be run again."""
        row_of = {int(self.points.indices[row]): row for row in rows}
        known: dict[tuple[int, int], bool] = {}
        found = []
        for outcome in self._of(part):
            row = row_of.get(outcome.index)
            if row is None:
                continue
            if outcome.status == BROKEN and (outcome.index, part.name, outcome.item) in self.stored:
                known[row, outcome.item] = True
                found.append((row, outcome.item, self.stored[outcome.index, part.name, outcome.item]))
            elif outcome.status in (SURVIVED, NONFINITE) or outcome.dtype == dtype:
                known.setdefault((row, outcome.item), False)
            if outcome.status == NONFINITE:
                self.suspect.add(row)
        self._replay_images(part, found)
        return known

    def _replay_images(self, part: Part, found: list[tuple[int, int, np.ndarray]]) -> None:
        """Images from the ledger are examined like fresh ones."""
        if not found:
            return
        faults = self._examine([row for row, *_ in found], np.stack([image for *_, image in found]))
        for (row, item, image), fault in zip(found, faults):
            if fault:
                index = self.points.indices[row]
                raise ValueError(
                    f"ledger = {self.ledger.path}: the image stored for point {index} is {fault}; start over"
                )
            self._break(part, row, item, image)

    def _examine(self, rows: list[int], images: np.ndarray) -> list[str]:
        found = verification.verify(
            self.judge, self.points.images[np.asarray(rows)], self.points.labels[rows], images,
            norm=self.plan.norm, epsilon=self.points.epsilon[rows], rows=rows,
        )  # fmt: skip
        self.largest = max(self.largest, found.largest)
        self.refused += [fault for fault in found.fault if fault]
        return found.fault

    def _reporter(self, part: Part, chain: Chain, dtype: str) -> scheduler.Report:
        """What happens when an item is over: it is noted, and a broken point leaves the robust ones."""

        def report(row: int, item: int, status: str, ticks: int, image: np.ndarray | None) -> None:
            index, target = int(self.points.indices[row]), int(chain.targets[row, item])
            outcome = Outcome(index, part.name, item, int(chain.restarts[item]), target, status, ticks, dtype)
            self.known.append(outcome)
            if status == BROKEN:
                self._break(part, row, item, image)
            elif status == NONFINITE:
                self.suspect.add(row)
            if self.ledger is not None:
                self.ledger.add(outcome, image)
                self._flush()
            self.tell({"event": "outcome", **dataclasses.asdict(outcome)})

        return report

    def _break(self, part: Part, row: int, item: int, image: np.ndarray) -> None:
        """Takes a point as broken; of several items of an attack the lowest keeps the image, whichever came first."""
        if row not in self.place or (self.place[row][0] == part.name and item < self.place[row][1]):
            self.status[row], self.place[row], self.adversarial[row] = BROKEN, (part.name, item), image

    def _flush(self, always: bool = False) -> None:
        """Writes to the ledger when a batch is full or half a minute is over."""
        if self.ledger is None:
            return
        late = time.monotonic() - self.flushed > FLUSH_SECONDS
        if always or late or self.ledger.pending >= self.plan.batch_size:
            self.ledger.flush()
            self.flushed = time.monotonic()

    def _judge_keys(self) -> Any:
        """[N] keys of the judge's own draws, for stochastic models."""
        if not self.plan.stochastic:
            return None
        return randomness.example_keys(self.plan.seed, self.points.indices.astype(np.uint32), randomness.MODEL)

    def result(self, version: Any) -> Result:
        """Gathers what came out."""
        void = [row for row in self.suspect if self.status[row] == ROBUST]
        for row in void:
            self.status[row] = NONFINITE
        adversarial = as_float(self.points.images)
        for row, image in self.adversarial.items():
            adversarial[row] = image
        robust = self.status == ROBUST
        claimed = None if self.low is None else int(robust.sum()) - len(self.claimed & set(np.flatnonzero(robust)))
        self.notes += checks.final(self.rows, self.status, len(void), self.refused)
        faults = [""] * len(self.adversarial) + self.refused
        confirmed = np.array([not fault for fault in faults], bool)
        return Result(
            version=version if isinstance(version, str) else list(version),
            norm=self.plan.norm,
            epsilon=self.points.epsilon,
            indices=self.points.indices,
            clean_correct=self.clean_correct,
            robust=robust,
            status=self.status.astype(str),
            broken_by=[self.place.get(row, ("", -1))[0] for row in range(self.count)],
            adversarial=adversarial,
            rows=self.rows,
            notes=self.notes,
            verification=verification.Verification(len(faults), confirmed, faults, self.largest),
            header=self.header,
            claimed_robust=claimed,
        )

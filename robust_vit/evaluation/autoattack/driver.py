"""AutoAttack and its relatives on a set of points: the worst case over an ensemble of attacks, point by point.

    result = autoattack(logits_fn, images, labels, norm="linf", epsilon=8 / 255, workdir="runs/a/autoattack")
    print(result.table())

A point counts as robust if it is classified correctly and no attack of the ensemble breaks it. Every attack starts
from the clean image and sees only the points that are still robust. The keys are folded from (seed, dataset index,
attack, restart, target rank), and every attack runs in a tile of one shape, so
the answer does not depend on `batch_size`, the order of the points, the number of devices, or whether the run was
killed and resumed.

Which attacks: `ensembles`. How they share the device: `scheduling`. Which points stand: `standings`. What is kept:
`session` and `ledger`. What counts as a success: `verification`. Whether the compiler can be believed: `canary`.
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import locks, provenance, randomness
from robust_vit.evaluation import canary, fingerprint
from robust_vit.evaluation.autoattack import arguments, checks, ensembles, runs
from robust_vit.evaluation.autoattack.arguments import FLOAT32, Arguments
from robust_vit.evaluation.autoattack.clean_pass import clean_pass
from robust_vit.evaluation.autoattack.ensembles import Part
from robust_vit.evaluation.autoattack.ledger import Entry, Ledger
from robust_vit.evaluation.autoattack.results import AttackRow, Result
from robust_vit.evaluation.autoattack.session import Session
from robust_vit.evaluation.autoattack.standings import Standings
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.points import Chain, Points
from robust_vit.evaluation.scheduling import programs, scheduler
from robust_vit.evaluation.verification import BROKEN, NONFINITE, ROBUST, Examiner, Judge
from robust_vit.threat import Threat, resolve
from robust_vit.typing import LogitsFn

RESULT = "result.json"  # in the ledger's folder, once the evaluation is complete
Event = dict[str, Any]


def autoattack(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str | None = None,
    epsilon: float | np.ndarray | None = None,
    threat: Threat | str | None = None,
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
    everywhere: Callable[[int], int] = int,
    open_ledger: Callable[[dict[str, Any]], Ledger] | None = None,
) -> Result:
    """Runs an ensemble of attacks on every point and reports what stands.

    Args:
      logits_fn: the model, images [B,H,W,C] in [0,1] -> logits [B,K]: any callable (`callables.as_logits_fn`); best a
        `jax.tree_util.Partial` whose leaves are its weights.
      images: [N,H,W,C] floats in [0,1], or uint8; may be a memory map.
      labels: [N] integers in [0, K).
      norm: "linf", "l2" or "l1".
      epsilon: radius in units of the [0,1] pixel range; one for all points or [N].
      threat: a `Threat` or its text, "linf-8/255", in place of norm and epsilon.
      version: a name of `ensembles.VERSIONS` or a list of attack names, in the order to run them.
      batch_size: most points in play at once, and outcomes between two writes of the ledger. Changes no result.
      seed: of the whole evaluation.
      workdir: folder of the ledger; an evaluation found there is resumed, and no other process may use it meanwhile.
        None keeps nothing.
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
      everywhere: of a share of the points, a number of points here -> of all shares together: tiles are then those of
        the whole, and so are the flags (`over_hosts`).
      open_ledger: header -> the ledger in `workdir`; `Ledger(workdir, header)` by default.

    Returns:
      A `results.Result`.

    Raises:
      ValueError: if an argument is out of range, the model returns no float logits [B,K], or `workdir` holds the ledger
        of another evaluation or is in use by another process.
      canary.Miscompiled: if the compiled model differs from its operations one by one by more than rounding.

    Reference: Croce & Hein, 2020, https://arxiv.org/abs/2003.01690
    """
    norm, epsilon = resolve(threat, norm, epsilon)
    points = arguments.points(images, labels, norm, epsilon, indices)
    tiles = arguments.tile("tile", tile, 32, 128, mesh), arguments.tile("forward_tile", forward_tile, 32, 512, mesh)
    given = Arguments(norm, seed, batch_size, *tiles, compute_dtype, stochastic, mesh)
    parts = ensembles.parts(version, norm, budget, settings)
    model, low = as_logits_fn(logits_fn), None
    if compute_dtype != FLOAT32:
        low = as_logits_fn(attack_logits_fn or runs.in_dtype(logits_fn, compute_dtype))
    classes = arguments.classes(model, points, stochastic, low)
    notes: list[str] = []
    if budget != 1 or settings:
        notes.append("the settings of the attacks are not those of the version: see the configuration")
    named = version if isinstance(version, str) else list(version)
    with nullcontext() if workdir is None else locks.hold(workdir, "workdir", notes.append):
        header = _header(model, points, given, parts, named, hash_data=workdir is not None)
        opened = open_ledger or functools.partial(Ledger, workdir)
        ledger = None if workdir is None else opened(header)
        told = on_event or (lambda event: None)
        evaluation = Evaluation(model, low, points, given, classes, ledger, told, notes, everywhere)
        evaluation.begin(parts)
        for part in parts:
            evaluation.attack(part)
        result = evaluation.result(named, header)
        if workdir is not None:
            provenance.write_json(pathlib.Path(workdir) / RESULT, result.to_dict())
    return result


def _header(
    model: LogitsFn, points: Points, given: Arguments, parts: Sequence[Part], version: Any, hash_data: bool
) -> dict[str, Any]:
    """What is evaluated: everything that may change a result; the batch size and the number of devices may not."""
    shape = jax.ShapeDtypeStruct((1, *points.images.shape[1:]), jnp.float32)
    keys = [jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))] if given.stochastic else []
    radius = np.unique(points.epsilon)
    names = ("norm", "seed", "tile", "forward_tile", "compute_dtype", "stochastic")
    config = {
        "epsilon": float(str(radius[0])) if len(radius) == 1 else fingerprint.weights([points.epsilon]),
        **{name: getattr(given, name) for name in names},
        "platform": jax.default_backend(),
        "generator": str(jax.config.jax_default_prng_impl),
    }
    return {
        "weights": fingerprint.weights(model),
        "program": fingerprint.program(model, shape, *keys),
        "data": fingerprint.data(points.images, points.labels, points.indices) if hash_data else "not hashed",
        "packages": fingerprint.packages(),
        "config": config | {part.name: dataclasses.asdict(part) for part in parts},
        "order": [part.name for part in parts],
        "version": version,
    }


class Evaluation:
    """One call of `autoattack`: the canary, the clean pass, attack after attack, the result.

    Args:
      model: the classifier.
      low: the same in lower precision, which is then attacked first; None for float32 throughout.
      points: the examples.
      given: how it is run.
      classes: K.
      ledger: where entries are kept; None keeps nothing.
      on_event: see `autoattack`.
      notes: what a reader of the figures must know.
      everywhere: see `autoattack`.
    """

    def __init__(
        self,
        model: LogitsFn,
        low: LogitsFn | None,
        points: Points,
        given: Arguments,
        classes: int,
        ledger: Ledger | None,
        on_event: Callable[[Event], None],
        notes: list[str],
        everywhere: Callable[[int], int] = int,
    ):
        self.model, self.low, self.points, self.given, self.classes = model, low, points, given, classes
        self.on_event, self.notes, self.everywhere = on_event, notes, everywhere
        self.count = everywhere(len(points.labels))  # points, here or elsewhere
        self.keys = None  # of the model's own draws, for stochastic ones
        if given.stochastic:
            self.keys = randomness.example_keys(given.seed, points.indices.astype(np.uint32), randomness.MODEL)
        self.judge = Judge(model, given.fitted(self.count), given.mesh, self.keys)
        self.examiner = Examiner(self.judge, points, given.norm)
        self.session = Session(ledger, given.batch_size)
        if self.session.resumed:
            notes.append(f"resumed: {self.session.resumed} outcomes taken from {ledger.path}")
        self.retried: set[int] = set()  # rows that the low-precision model gave up but float32 did not

    def begin(self, parts: Sequence[Part]) -> None:
        """Runs the canary and the clean pass."""
        slots = max(self._slots(part, self.count) for part in parts)
        settings = {"slots": slots, "keys": self.keys, "mesh": self.given.mesh, "effort": programs.STEADY}
        check = functools.partial(canary.check, **settings)
        self.canary = check(self.model, self.points.images).to_dict()
        if self.low is not None:
            self.canary[self.given.compute_dtype] = check(self.low, self.points.images).to_dict()
        self.clean = clean_pass(self.judge, self.points, self.given.stochastic)
        self.standings, self.rows = Standings(self.clean.status), [self.clean.row]
        self.notes += self.clean.notes
        count = len(self.points.labels)
        self.on_event({"event": "clean", "points": count, "correct": int(self.clean.correct.sum())})
        self.session.note_clean(self.points.indices, self.clean.status)

    def attack(self, part: Part) -> None:
        """Runs one attack on the points that still stand: in low precision first if asked, then in float32 what that
        could not settle.
        """
        began, rows = time.perf_counter(), self.standings.robust()
        part, notes = ensembles.fit(part, self.classes)
        self.notes += notes
        self.on_event({"event": "attack", "attack": part.name, "points": len(rows)})
        row = AttackRow(part.name, len(rows))
        if self.low is not None:
            self._schedule(part, rows, self.low, self.given.compute_dtype, row)
            open_points = self.session.unsettled(part.name)
            rows = [r for r in self.standings.robust() if int(self.points.indices[r]) in open_points]
            self.retried.update(rows)
        self._schedule(part, rows, self.model, FLOAT32, row)
        row.broken = row.points - len(self.standings.robust())
        row.seconds = time.perf_counter() - began
        self.rows.append(row)
        self.session.flush()
        self.on_event({"event": "attack_done", **dataclasses.asdict(row)})

    def _schedule(self, part: Part, rows: list[int], model: LogitsFn, dtype: str, row: AttackRow) -> None:
        """Runs an attack on the rows in one precision."""
        standing = self.everywhere(len(rows))
        if not rows:
            return
        given, chain = self.given, self._chain(part)
        run = runs.build(part, given.norm, given.stochastic, self.classes)
        slots, known = self._slots(part, standing), self._replay(part, rows, dtype)
        compiled = self.judge.compile_seconds
        tally = scheduler.schedule(
            run, model, self.points, rows, chain,
            examine=self.examiner, on_outcome=functools.partial(self._note, part, chain, dtype), seed=given.seed,
            slots=slots, chunk=runs.chunk(part), window=given.batch_size, known=known, mesh=given.mesh,
        )  # fmt: skip
        row.add(tally, runs.cost(run, part, self.classes), self.judge.compile_seconds - compiled)

    def _slots(self, part: Part, rows: int) -> int:
        """The tile of an attack. It may depend on how much work there is, never on how the work is batched."""
        free = runs.gradient_free(part)
        share = -(-(rows if free else self.count) * len(part.items) // scheduler.LANES)
        if free:
            return scheduler.balanced(share, self.given.forward_tile, self.given.multiple)
        return self.given.fitted(share)

    def _chain(self, part: Part) -> Chain:
        """The restarts and targets of each point."""
        restarts, ranks = (np.array(column) for column in zip(*part.items))
        targets = np.full((len(self.points.labels), len(ranks)), -1)
        if part.targets:
            clean, slots = self.clean, self.judge.slots
            order = runs.targets(part, self.model, self.points, clean.logits, self.given.norm, slots, clean.correct)
            targets = order[:, ranks - 1]
        return Chain(restarts, ranks, targets.astype(np.int32), ensembles.CODES[part.name])

    def _replay(self, part: Part, rows: list[int], dtype: str) -> dict[tuple[int, int], bool]:
        """Takes over what earlier runs found, images examined like fresh ones; returns {(row, item): broke}."""
        row_of = {int(self.points.indices[row]): row for row in rows}
        replay = self.session.replay(part.name, row_of, dtype)
        self.standings.suspect |= replay.suspect
        shape = self.points.images.shape[1:]
        fits = [image.shape == shape for _, _, image in replay.claims]
        faults = ["of another shape"] * len(fits)
        if all(fits) and fits:
            claimed, _, images = zip(*replay.claims)
            faults = self.examiner(claimed, np.stack(images))
        for (row, item, image), fault in zip(replay.claims, faults):
            if fault:
                where = f"the image stored for point {self.points.indices[row]}"
                raise ValueError(f"ledger = {self.session.ledger.path}: {where} is {fault}; start over")
            self.standings.broke(row, part.name, item, image)
        return replay.known

    def _note(
        self, part: Part, chain: Chain, dtype: str, row: int, item: int, status: str, ticks: int, image: Any
    ) -> None:
        """What happens when an item is over: it is noted, and a broken point leaves those that stand."""
        index, target = int(self.points.indices[row]), int(chain.targets[row, item])
        entry = Entry(index, part.name, item, int(chain.restarts[item]), target, status, ticks, dtype)
        if status == BROKEN:
            self.standings.broke(row, part.name, item, image)
        elif status == NONFINITE:
            self.standings.suspect.add(row)
        self.session.note(entry, image)
        self.on_event({"event": "outcome", **dataclasses.asdict(entry)})

    def result(self, version: Any, header: dict[str, Any]) -> Result:
        """Gathers what came out."""
        standings, void = self.standings, self.standings.void_suspects()
        robust = standings.status == ROBUST
        claimed = None if self.low is None else int(robust.sum()) - len(self.retried & set(standings.robust()))
        self.notes += checks.final(self.rows, standings.status, void, self.examiner.refused)
        return Result(
            version=version,
            norm=self.given.norm,
            epsilon=self.points.epsilon,
            indices=self.points.indices,
            clean_correct=self.clean.correct,
            robust=robust,
            status=standings.status.astype(str),
            broken_by=standings.broken_by(),
            adversarial=standings.adversarial(self.points),
            rows=self.rows,
            notes=self.notes,
            verification=self.examiner.summary(standings.broken),
            header=header,
            claimed_robust=claimed,
            canary=self.canary,
        )

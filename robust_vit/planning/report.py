"""The lines of a plan: what each program needs of a chip, what to do where it does not fit, how long it all takes."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit import config as config_lib
from robust_vit import parallel
from robust_vit.config import ConfigDict
from robust_vit.errors import check
from robust_vit.evaluation.autoattack import arguments, ensembles, runs
from robust_vit.models import summary
from robust_vit.models.parts import forms
from robust_vit.planning import compiled, estimate
from robust_vit.planning.chips import GIB, Topology
from robust_vit.training import experiment, frozen, programs, validate

# What saves memory, the cheapest first: field, value, where it can be turned on, in words.
REMEDIES: tuple[tuple[str, Any, Callable[[Any], bool]], ...] = (
    ("model.dtype", "bfloat16", lambda c: c.model.dtype == "float32"),
    ("training.remat_policy", "dots_no_batch", lambda c: not c.training.remat_policy),
    ("parallel.sharding", "fsdp", lambda c: c.parallel.sharding == "replicated"),
    ("optimizer.accumulation", 2, lambda c: c.optimizer.accumulation < 2),
    ("optimizer.accumulation", 4, lambda c: c.optimizer.accumulation < 4),
    ("model.remat", True, lambda c: not c.model.remat),
    ("optimizer.accumulation", 8, lambda c: c.optimizer.accumulation < 8),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
      utilisation: share of the chips' peak that is reached, in (0, 1].
      price: of a chip for an hour; None leaves the cost out.
      points: images that AutoAttack is estimated for.
      tile: images in a call of AutoAttack, over all chips.
      autoattack: whether its programs are compiled too.
      search: whether to look for what fits, where something does not.
    """

    utilisation: float = 0.4
    price: float | None = None
    points: int = 1000
    tile: int = 128
    autoattack: bool = True
    search: bool = True


class Plan:
    """A run on described chips.

    Args:
      config: of the run.
      topology: the chips.
      dataset: its data, or what stands for them.
      say: is handed every line as soon as it is known; the next may be minutes away.
      settings: what is asked for.
    """

    def __init__(
        self, config: ConfigDict, topology: Topology, dataset: Any, say: Callable[[str], None], settings: Settings
    ):
        self.config, self.topology, self.dataset, self.say, self.settings = config, topology, dataset, say, settings
        self.macs: list[int] = []  # multiply-adds of a step, a stage
        self.experiment = self._build(config)
        self.teacher = frozen.of(self.experiment)

    def _build(self, config: ConfigDict) -> Any:
        devices, count = config.parallel.devices, self.topology.count
        check("parallel.devices", devices, devices in (0, count), f"left at 0: {self.topology.name} has {count}")
        validate.batches(config, count)
        mesh = self.topology.mesh or parallel.mesh(1)
        return experiment.build(copy.deepcopy(config), mesh=mesh, dataset=self.dataset)

    def figures(self) -> dict[str, Any]:
        """Says all of it, and returns the figures; "fits" says whether training does."""
        figures = {"topology": self.topology.name, "chips": self.topology.count, "fits": True}
        figures |= self.described() if self.topology.mesh is None else self.compiled()
        return figures | (self.estimated() if figures["fits"] else {})

    def compiled(self) -> dict[str, Any]:
        """Compiles the steps of all stages, and AutoAttack's programs; says what they need."""
        stages = self.experiment.stages
        figures: dict[str, Any] = {"programs": {}}
        for number in range(len(stages)):
            name = "training step" + (f", stage {number + 1}" if len(stages) > 1 else "")
            try:
                program = compiled.training_step(self.experiment, number, self.teacher)
            except compiled.OutOfMemory as error:
                return figures | {"fits": False} | self.answered(name, error, number)
            self.macs.append(program.macs)
            figures["programs"][name] = self.told(name, program)
        for name, program in self.attacks() if self.settings.autoattack else ():
            figures["programs"][name] = self.told(name, program)
        return figures

    def attacks(self) -> Iterator[tuple[str, Any]]:
        """AutoAttack's programs, one for all attacks that share it."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), summary.shapes(self.experiment.module))
        module, _ = forms.scanned(self.experiment.module, zeros)
        group = math.lcm(arguments.GROUP, self.topology.count)
        slots, seen = -(-self.settings.tile // group) * group, set()
        for part in ensembles.parts("standard", self.config.attack.norm, 1.0, None):
            part, _ = ensembles.fit(part, module.num_classes)
            run = runs.build(part, self.config.attack.norm, classes=module.num_classes)
            if run in seen:
                continue
            seen.add(run)
            name = f"AutoAttack {part.name}, tile {slots}"
            try:
                yield name, compiled.attack_steps(part, module, self.config.attack.norm, self.topology.mesh, slots)
            except compiled.OutOfMemory as error:
                self.say(f"{name}: does not fit ({self.exceeded(error)}); a smaller --tile does")

    def told(self, name: str, program: Any) -> dict[str, Any]:
        """Says what a program needs; returns it."""
        limit = self.topology.chip.memory
        self.say(
            f"{name}: {program.peak / GIB:.2f} GiB a chip of {limit / GIB:.2f} ({100 * program.peak / limit:.0f} %),"
            f" {program.arguments / GIB:.2f} of them arguments; {program.talk};"
            f" traced in {program.trace_seconds:.0f} s, compiled in {program.compile_seconds:.0f} s here"
        )
        return {"peak": program.peak, "arguments": program.arguments, "collectives": program.collectives}

    def exceeded(self, error: Any) -> str:
        """How much more a program wants than there is."""
        wants = "more" if error.needed is None else f"{error.needed / GIB:.2f} GiB a chip"
        return f"it wants {wants} of {(error.available or self.topology.chip.memory) / GIB:.2f} GiB"

    def answered(self, name: str, error: Any, stage: int) -> dict[str, Any]:
        """Says that a step does not fit, the largest batch that does, and what to turn on."""
        self.say(f"{name}: {self.config.data.batch_size} images do not fit: {self.exceeded(error)}")
        if not self.settings.search:
            return {}
        multiple = self.topology.count * self.config.optimizer.accumulation
        size = compiled.largest(
            lambda batch: self.fits(stage, {"data.batch_size": batch}), self.config.data.batch_size, multiple
        )
        self.say(f"largest batch that fits as it is: {size or f'none, not even {multiple}'}")
        remedy = next((change for change in self.remedies() if self.fits(stage, change)), None)
        words = " ".join(f"--config.{field}={str(value).lower()}" for field, value in (remedy or {}).items())
        self.say(f"fits at {self.config.data.batch_size} with {words}" if remedy else "no single field makes it fit")
        return {"largest": size, "remedy": remedy}

    def remedies(self) -> Iterator[dict[str, Any]]:
        """What can be turned on in this run, one after the other."""
        size, count = self.config.data.batch_size, self.topology.count
        for field, value, possible in REMEDIES:
            divides = field != "optimizer.accumulation" or size % (value * count) == 0
            if possible(self.config) and divides:
                yield {field: value}

    def fits(self, stage: int, changes: dict[str, Any]) -> bool:
        """Whether the step fits with other values of some fields."""
        config = copy.deepcopy(self.config)
        for field, value in changes.items():
            section, _, name = field.rpartition(".")
            config_lib.get(config, section)[name] = value
        try:
            compiled.training_step(self._build(config), stage, self.teacher)
            fits = True
        except compiled.OutOfMemory:
            fits = False
        self.say(
            f"  tried {', '.join(f'{field} = {value}' for field, value in changes.items())}: {'fits' * fits or 'no'}"
        )
        return fits

    def described(self) -> dict[str, Any]:
        """What can be said without a compiler: the state's memory and the arithmetic."""
        given = programs.abstract_arguments(self.experiment, self.teacher)
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(given[0]))
        state //= self.topology.count if self.config.parallel.sharding == "fsdp" else 1  # about: small leaves are whole
        gradient = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(given[0].params))
        for stage in self.experiment.stages:
            self.macs.append(summary.traced_macs(jax.make_jaxpr(stage.step)(*given).jaxpr))
        share = 100 * (state + gradient) / self.topology.chip.memory
        self.say(
            f"state {state / GIB:.2f} GiB and gradient {gradient / GIB:.2f} GiB on each ({share:.0f} % of its memory);"
            " activations: not known without a compiler for it, collectives: one all-reduce of the gradient a step"
        )
        return {"state": state, "gradient": gradient}

    def estimated(self) -> dict[str, Any]:
        """Says how long it all takes at the stated utilisation, and what that costs."""
        e, asked, dtype = self.experiment, self.settings, self.config.model.dtype
        units = estimate.points_units(self.config, e.module)
        validated = self.config.validation.examples or len(self.dataset.validation)
        work = estimate.work(e, self.macs, {"validation": validated, "points": asked.points})
        self.say(
            f"arithmetic, counted: {work.step:.3g} operations a step, {e.total_steps:,} steps, {work.training:.3g} in"
            f" all; validation {work.validation:.3g}; AutoAttack on {asked.points} points at most"
            f" {work.autoattack:.3g}, {units:,.0f} forward passes of a point that survives it"
        )
        step, training, validation, attack, total = (
            estimate.seconds(operations, self.topology, asked.utilisation, dtype)
            for operations in (work.step, work.training, work.validation, work.autoattack, work.total)
        )
        self.say(
            f"at {100 * asked.utilisation:.0f} % of the peak (stated, not measured): {1000 * step:.3g} ms a step;"
            f" training {_time(training)}, validation {_time(validation)}, AutoAttack at most {_time(attack)}:"
            f" {_time(total)}"
        )
        chip_hours = self.topology.count * total / 3600
        cost = chip_hours * asked.price if asked.price else None
        money = f"{cost:,.2f} at {asked.price:g} an hour" if cost is not None else "--price=OF_AN_HOUR makes it money"
        self.say(f"{chip_hours:,.1f} hours of a chip; {money}")
        return {"step_seconds": step, "hours": total / 3600, "chip_hours": chip_hours, "cost": cost}


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"

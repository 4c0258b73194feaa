"""Parameter groups as launches, which follow what other code changes: groups, parameters, state.

All functions take the optimizer, whose ``_shared.plans`` say how each group is stepped.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Mapping
from operator import is_
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor

from deeprelax.kernels import Backend, why_eager
from deeprelax.kernels.device_table import capturing
from deeprelax.kernels.layout import NEEDS_GRAD
from deeprelax.optim import flat_storage
from deeprelax.optim.bucket import Bucket, buffers_of, misfit
from deeprelax.optim.clock import CLOCK, Clock, HostClock
from deeprelax.optim.device_clock import DeviceClock, check_rate, rates, refuse_new_in_capture
from deeprelax.optim.hyperparameters import SHARED, plain
from deeprelax.optim.replicas import Exchange
from deeprelax.optim.sharding import is_sharded, noise_places, part
from deeprelax.optim.state import State

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation


@dataclasses.dataclass(frozen=True)
class Options:
    """What an optimizer was constructed with, for all groups."""

    backend: str | Backend
    flatten: bool
    capturable: bool
    stochastic_rounding: bool

    def __deepcopy__(self, memo: Any) -> Options:
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # a backend is found again by its name
        name = self.backend if isinstance(self.backend, str) else self.backend.name
        return Options, (name, self.flatten, self.capturable, self.stochastic_rounding)


@dataclasses.dataclass
class Plan:
    """How one group is stepped.

    Attributes:
        group: the group.
        base: how many parameters the groups before it have.
        params: its parameters when the buckets were made.
        frozen: those of them that do not require gradients, and are in no bucket.
        buckets: a launch each.
        clock: the group's.
        noise_index: the group's ``"noise_index"`` when the buckets were made.
    """

    group: dict[str, Any]
    base: int
    params: list[Tensor]
    frozen: list[Tensor]
    buckets: list[Bucket]
    clock: Clock
    noise_index: Any = None

    def is_current(self, base: int) -> bool:
        """Whether the group has the same parameters at the same addresses, and the same ones train."""
        params = self.group["params"]
        if (base, self.group.get("noise_index"), len(params)) != (self.base, self.noise_index, len(self.params)):
            return False
        if len(self.buckets) == 1 and not self.frozen:
            return self.buckets[0].is_current(params)
        return (
            all(map(is_, params, self.params))
            and not any(map(NEEDS_GRAD, self.frozen))
            and all(bucket.is_current(bucket.params) for bucket in self.buckets)
        )


@dataclasses.dataclass
class Shared:
    """What changes in the course of a run. It is one object, so that the methods of a wrapper that has copied the
    optimizer's ``__dict__`` (Lightning's) keep their effect."""

    options: Options
    clock: dict[str, Any]  # the initial one of the first group
    seed_pending: bool  # the ranks of a process group have not agreed on the noise's seed yet
    exchange: Exchange | None = None  # with other workers
    warned: set[str] = dataclasses.field(default_factory=set)
    state: State = dataclasses.field(default_factory=State)
    plans: list[Plan] = dataclasses.field(default_factory=list)
    begun: bool = False  # no warning of ``first_step`` is due any more
    why_slow: str = ""  # for a warning at the first step: why the reference makes the updates

    @property
    def buckets(self) -> list[Bucket]:
        """Of all groups."""
        return [bucket for plan in self.plans for bucket in plan.buckets]

    @property
    def replica(self) -> int:
        """The noise's replica: each worker draws different noise."""
        return self.exchange.replicas.rank if self.exchange else 0

    def warn_once(self, kind: str, message: str) -> None:
        """Warn once in a run for each ``kind``, at the line that called the optimizer."""
        if kind in self.warned:
            return
        self.warned.add(kind)
        # Skip the frames of this package and of torch's hooks around step().
        level, frame, ours = 1, sys._getframe(), ("deeprelax", "torch", "contextlib")
        while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
            level, frame = level + 1, frame.f_back
        warnings.warn(message, stacklevel=level)

    def portable(self) -> Shared:
        """Without what is rebuilt from the optimizer's state and groups."""
        return dataclasses.replace(self, warned=set(self.warned), state=State(), plans=[])


def ready(opt: Relaxation, *, at_any_phase: bool = False, check: bool = False) -> list[Plan]:
    """The plans, after taking over all that other code has changed; with ``check`` the hyper-parameters, too.

    Raises:
        RuntimeError: a parameter was replaced, moved or cast in mid-cycle, unless ``at_any_phase``.
        ValueError: a value is out of range.
        TypeError: a parameter is not supported.
    """
    groups, plans, state = opt.param_groups, opt._shared.plans, opt.state
    if len(plans) != len(groups) or not all(plan.group is group for plan, group in zip(plans, groups)):
        plans = match_groups(opt)
    base = 0
    for i, plan in enumerate(plans):
        if not plan.is_current(base):
            adopt(opt, i, base, at_any_phase)
        base += len(plan.params)
    if check:
        inner_steps = plain(groups[0]["inner_steps"]) if groups else 0
        for plan in plans:
            if plan.clock.take_in(inner_steps):
                notice_changes(opt, plan)
    if state.note.written:
        take_over_state(opt)
    return plans


def match_groups(opt: Relaxation) -> list[Plan]:
    """Plans for the present groups; a new group gets the entries that it lacks."""
    known = {id(plan.group): plan for plan in opt._shared.plans}
    reference = next((plan.clock for plan in opt._shared.plans if any(plan.group is g for g in opt.param_groups)), None)
    plans: list[Plan] = []
    added = False
    for i, group in enumerate(opt.param_groups):
        plan = known.get(id(group))
        if plan is None:
            added = True
            clock = opt._shared.clock if reference is None else reference.numbers()
            start = {name: clock[name] for name in CLOCK if name in clock and name != "cycle_gamma"}
            for name, default in {**opt.defaults, **start, "fresh": True}.items():
                group.setdefault(name, default)
            group.setdefault("cycle_steps", group["inner_steps"])
            group.setdefault("cycle_gamma", group["gamma"])
            plan = Plan(group, -1, [], [], [], new_clock(opt, i, group, [p.clock for p in plans]))
            plan.clock.take_in(plain(opt.param_groups[0]["inner_steps"]))
            opt._notice(plan.clock.numbers())
            for name, p in named(opt, i):
                opt._check_parameter(name, p)
        plans.append(plan)
    if added and not hasattr(opt, "_constructing"):  # the constructor checks all groups at once
        refuse_overlaps(opt)
    opt._shared.plans = plans
    drop_removed(opt)
    return plans


def new_clock(opt: Relaxation, i: int, group: dict[str, Any], others: list[Clock]) -> Clock:
    """A clock for a group, on the host or, with ``capturable``, on the device."""
    options, ranges = opt._shared.options, {**SHARED, **opt.ranges}
    if not options.capturable:
        rounding, warn, holds_x = options.stochastic_rounding, opt._shared.warn_once, opt.params_hold_x
        return HostClock(opt.rule, group, ranges, rounding, holds_x, warn, opt._notice_gamma, opt._shared.replica)
    device = one_device(opt)
    for name in rates(opt.rule):
        check_rate(name, group[name], device)
    taken = [other.group[name] for other in others for name in rates(opt.rule)]
    rounding = options.stochastic_rounding
    return DeviceClock(opt.rule, group, device, options.backend, ranges, rounding, taken, opt._shared.replica)


def one_device(opt: Relaxation) -> torch.device:
    """The one device of all parameters of a capturable optimizer.

    Raises:
        ValueError: there are several.
    """
    found: dict[torch.device, str] = {}
    for i in range(len(opt.param_groups)):
        for name, p in named(opt, i):
            found.setdefault(p.device, name)
    if len(found) > 1:
        (a, name_a), (b, name_b) = list(found.items())[:2]
        raise ValueError(
            f"capturable=True needs all parameters on one device; {name_a} is on {a}, {name_b} on {b}: make an "
            "optimizer for each device"
        )
    return next(iter(found), torch.device("cpu"))


def notice_changes(opt: Relaxation, plan: Plan) -> None:
    """After a group has changed: warn of its hyper-parameters, and add the buffers that they need."""
    if isinstance(plan.clock, HostClock):  # reading a device clock would wait for the device
        opt._notice(plan.group)
    for bucket in plan.buckets:
        for name in momenta(opt, plan.group):
            if name not in bucket.buffers:
                if capturing(bucket.table.device):
                    refuse_new_in_capture(name)
                bucket.add_buffers([name], opt.state)
                for t in range(len(bucket.params)):
                    bucket.begin(t, name, 0)


def momenta(opt: Relaxation, group: Mapping[str, Any]) -> list[str]:
    """The buffers that the group needs for hyper-parameters that are not 0: momenta."""
    return [buffer for name, buffer in opt.rule.optional if group[name] != 0]


def drop_removed(opt: Relaxation) -> None:
    """Forget the state of parameters that are in no group."""
    members = {p for group in opt.param_groups for p in group["params"]}
    for p in [p for p in opt.state if isinstance(p, Tensor) and p not in members]:
        opt.state.drop(p)


def take_over_state(opt: Relaxation) -> None:
    """Copy what was put into the state to the buffers; what was removed from it is initialised again."""
    opt.state.note.written = False
    try:
        for plan in opt._shared.plans:
            for bucket in plan.buckets:
                for t, p in enumerate(bucket.params):
                    entry = opt.state[p]
                    if not bucket.owns(t, entry) or len(entry) != len(bucket.views):
                        bucket.take_over(t, dict(entry), opt.state, plan.clock.numbers()["step"])
            for p in plan.frozen:
                opt.state.drop(p)
    except BaseException:
        opt.state.note.written = True
        raise


def adopt(opt: Relaxation, i: int, base: int, at_any_phase: bool) -> None:
    """New buckets for a group whose parameters have changed, with the state that belongs to them.

    State follows the parameter; a new parameter takes over the state of a removed one that had its position.
    """
    plan = opt._shared.plans[i]
    group, members = plan.group, named(opt, i)
    buckets = {p: bucket for bucket in plan.buckets for p in bucket.params}
    by_position = {j: p for bucket in plan.buckets for j, p in zip(bucket.positions, bucket.params)}
    staying, frozen, changed, sources = set(group["params"]), set(plan.frozen), [], {}
    for j, (name, p) in enumerate(members):
        entry = opt.state.get(p)
        if p in buckets:
            # Moved with its state, or sent to another process, which moves its memory and what it holds with it.
            with_state = is_whole(opt, p, entry) and not buckets[p].owns(buckets[p].position(p), entry or {})
            if not (buckets[p].holds(p) or with_state or part(p).untyped_storage().is_shared()):
                changed.append(name)
            sources[p] = entry
        elif p in frozen:
            sources[p] = None
        elif entry:
            sources[p] = entry
            if not is_whole(opt, p, entry):
                changed.append(name)
        elif j in by_position and by_position[j] not in staying:
            sources[p] = opt.state.get(by_position[j])
            changed.append(name)
    if changed and not at_any_phase and not between_cycles(opt, plan):
        refuse_to_adopt(opt, plan, changed)
    if any(capturing(bucket.table.device) for bucket in plan.buckets):
        raise RuntimeError(
            "parameters were frozen, thawed, moved or replaced since the last step: run one step() before "
            "capturing one, because their state must not belong to the graph"
        )
    for name, p in members:
        opt._check_parameter(name, p)
    refuse_overlaps(opt)
    if opt._shared.options.capturable:
        device = one_device(opt)
        if device != cast(DeviceClock, plan.clock).memory.words.device:
            move_clocks(opt, device)
    make_buckets(opt, i, base, sources)


def is_whole(opt: Relaxation, p: Tensor, entry: Mapping[str, Any] | None) -> bool:
    """Whether an entry holds all that the rule keeps of a parameter, in its shape and on its device."""
    wide = p.dtype in (torch.bfloat16, torch.float16)
    names = buffers_of(opt.rule, wide, opt._shared.options.stochastic_rounding)
    values = [(entry or {}).get(name) for name in names]
    return all(
        isinstance(v, Tensor) and not misfit(name, p, v) and v.device == p.device for name, v in zip(names, values)
    )


def make_buckets(opt: Relaxation, i: int, base: int, sources: Mapping[Tensor, Mapping[str, Any] | None]) -> None:
    """Buckets for the group; parameters take over the state in ``sources``, or are initialised if there is none."""
    plan, options = opt._shared.plans[i], opt._shared.options
    members, noise = named(opt, i), noise_places(plan.group, base)
    sets: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
    for j, (_, p) in enumerate(members):
        if p.requires_grad:
            sets.setdefault((p.device, p.dtype, is_sharded(p)), []).append(j)
    held = {p: dict(entry) for p, entry in sources.items() if entry}
    before = {p: dict(opt.state[p]) for p in {*plan.params, *plan.group["params"]} if p in opt.state}
    buckets = []
    try:
        for p in before:
            opt.state.drop(p)
        for positions in sets.values():
            params, names = [members[j][1] for j in positions], [members[j][0] for j in positions]
            bucket = Bucket(
                opt.rule,
                params,
                positions,
                [noise[j] for j in positions],
                names,
                options.backend,
                options.flatten,
                options.capturable,
                options.stochastic_rounding,
            )
            for p in params:
                opt.state.put(p)
            numbers = plan.clock.numbers()
            bucket.add_buffers([*bucket.kept, *momenta(opt, numbers)], opt.state)
            for t, p in enumerate(params):
                bucket.take_over(t, held.get(p, {}), opt.state, numbers["step"])
            buckets.append(bucket)
            if options.backend == "auto" and bucket.backend.name == "eager":
                opt._shared.why_slow, opt._shared.begun = why_eager(bucket.table.device), False
    except BaseException:
        for p in plan.group["params"]:
            opt.state.drop(p)
        for p, entry in before.items():
            opt.state[p] = entry
        raise
    plan.base, plan.params, plan.buckets = base, [p for _, p in members], buckets
    plan.frozen = [p for _, p in members if not p.requires_grad]
    plan.noise_index = copy.deepcopy(plan.group.get("noise_index"))


def between_cycles(opt: Relaxation, plan: Plan) -> bool:
    """Whether the group's parameters alone determine the state of the run."""
    inner = any("inner" in bucket.buffers for bucket in plan.buckets)
    return not inner and plan.clock.numbers()["phase"] == 0


def refuse_to_adopt(opt: Relaxation, plan: Plan, changed: list[str]) -> NoReturn:
    """RuntimeError that names the parameters that changed in mid-cycle."""
    phase = plan.clock.numbers()["phase"]
    where = f"phase {phase}" if phase else "eval mode"
    raise RuntimeError(
        f"{', '.join(changed[:3])} was replaced, moved or cast in {where}; do that before "
        "the first step or at phase 0 (outer_step_happened), or call restart() after it"
    )


def move_clocks(opt: Relaxation, device: torch.device) -> None:
    """New clocks on another device, with the values of the old ones."""
    plans = opt._shared.plans
    for i, plan in enumerate(plans):
        happened, values = plan.clock.outer_step_happened, plan.clock.portable()
        plan.group.update({n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()})
        plan.clock = new_clock(opt, i, plan.group, [other.clock for other in plans[:i]])
        plan.clock.take_in(plain(plans[0].group["inner_steps"]))
        plan.clock.outer_step_happened = happened


def refuse_overlaps(opt: Relaxation) -> None:
    """ValueError if two parameters share memory."""
    flat_storage.refuse_overlaps(entry for i in range(len(opt.param_groups)) for entry in named(opt, i))


def named(opt: Relaxation, group_index: int) -> list[tuple[str, Tensor]]:
    """The parameters of a group, each with a name for messages."""
    group = opt.param_groups[group_index]
    names = group.get("param_names")
    if names is None or len(names) != len(group["params"]):
        names = [f"param_groups[{group_index}]['params'][{i}]" for i in range(len(group["params"]))]
    return list(zip(names, group["params"]))

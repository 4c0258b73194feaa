"""``torch.compile``: in a graph a step is one operator, which runs the ordinary step; everything else runs in Python.

A graph must know which tensors it reads and writes: it passes the parameters, their gradients and the learning rates.
The clock, the state and the tables of addresses stay in the optimizer, which the graph knows by a name. Nothing that
changes from one step to the next is guarded.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from deeprelax.optim.sharding import is_sharded

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation

P = ParamSpec("P")
R = TypeVar("R")

# The optimizers by their names in graphs. A name is a running number: unlike an address it is never reused, and it is
# the same in the program's next run, which therefore finds its graphs in the compiler's cache.
OPTIMIZERS: WeakValueDictionary[str, Relaxation] = WeakValueDictionary()
COUNT = itertools.count()


def in_python(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Under ``torch.compile``: call the function outside of the graph, as a graph break."""
    result: R = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
    return result


def outside_graphs(method: Callable[P, R]) -> Callable[P, R]:
    """Under ``torch.compile`` the method runs in Python, as a graph break.

    ``torch.compiler.disable`` does the same, but imports the compiler at once, which takes seconds.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return in_python(method, *args, **kwargs)
        return method(*args, **kwargs)

    return call


def new_name(opt: Relaxation) -> str:
    """A name by which graphs find the optimizer, as long as it lives."""
    name = str(next(COUNT))
    OPTIMIZERS[name] = opt
    return name


def members(opt: Relaxation) -> list[Tensor]:
    """All parameters: which of them train is looked up at each step, because not every compiler guards it.

    Not through ``opt.param_groups``, of which the compiler would guard every entry, including the clock.
    """
    return [p for plan in opt._shared.plans for p in plan.group["params"]]


def rates(opt: Relaxation) -> list[Tensor]:
    """The learning rates that are tensors, which a graph may write to before the step."""
    groups, names = [plan.group for plan in opt._shared.plans], opt.rule.rates
    return [group[name] for group in groups for name in names if name and isinstance(group[name], Tensor)]


def step(
    opt: Relaxation,
    closure: Callable[[], float] | None,
    uncompiled: Callable[[Relaxation, Callable[[], float] | None], float | None],
) -> float | None:
    """What the compiler traces instead of ``Relaxation.step``, which is ``uncompiled``."""
    if any(map(is_sharded, members(opt))):  # DTensors need a rule for each operator
        return in_python(uncompiled, opt, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    params, scaler = members(opt), [getattr(opt, name, None) for name in SCALER]
    with torch.no_grad():
        torch.ops.deeprelax.step.default(params, [p.grad for p in params], rates(opt), *scaler, opt._name_in_graphs)
    return loss


SCALER = ("grad_scale", "found_inf")
LIBRARY = torch.library.Library("deeprelax", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "step(Tensor(a!)[] params, Tensor?[] grads, Tensor[] rates, Tensor? grad_scale, Tensor? found_inf, str optimizer)"
    " -> ()",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


@torch.library.impl(LIBRARY, "step", "CompositeExplicitAutograd")
@torch.no_grad()
def _step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    graph_rates: Sequence[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    optimizer: str,
) -> None:
    opt = OPTIMIZERS.get(optimizer)
    if opt is None:
        raise RuntimeError("the optimizer of a compiled step is gone")
    held = {name: vars(opt)[name] for name in SCALER if name in vars(opt)}
    vars(opt).update(grad_scale=grad_scale, found_inf=found_inf)
    try:
        _step_of(opt, params, grads, graph_rates)
    except BaseException:
        held = {}  # as after a step outside of graphs
        raise
    finally:
        for name in SCALER:
            vars(opt).pop(name, None)
        vars(opt).update(held)


def _step_of(
    opt: Relaxation, params: Sequence[Tensor], grads: Sequence[Tensor | None], graph_rates: Sequence[Tensor]
) -> None:
    """The step with these tensors in place of the optimizer's own."""
    for bucket in opt._shared.buckets:
        bucket.forget_versions()  # the compiled graph has counted its writes in advance
    opt._refuse_in_eval("step")
    # Not ``members``: of a group that was appended to ``param_groups`` the graph knows nothing yet.
    own, own_rates = [p for group in opt.param_groups for p in group["params"]], rates(opt)
    if (len(own), len(own_rates)) != (len(params), len(graph_rates)):
        raise RuntimeError(
            "the optimizer has other parameters or tensor rates than when its step was compiled: add groups with "
            "add_param_group(), or make one step outside of the graph"
        )
    # A compiler backend may pass copies of the parameters, which the rest of the graph uses in their place.
    copies = [(p, t) for p, t in zip(own, params) if p is not t and p.data_ptr() != t.data_ptr()]
    changed = [(t, given) for t, given in zip(own_rates, graph_rates) if t.data_ptr() != given.data_ptr()]
    for t, value in (*copies, *changed):
        t.copy_(value)
    exchanged = [(p, p.grad, g) for p, g in zip(own, grads, strict=True) if p.grad is not g]
    try:
        for p, _, g in exchanged:
            p.grad = g
        opt._step()
    finally:
        for p, held, _ in exchanged:
            p.grad = held
    for p, copy in copies:
        copy.copy_(p)
    for bucket in opt._shared.buckets:
        if copies or opt._shared.options.capturable:
            bucket.forget_versions()
        else:
            bucket.note_versions()


torch.library.register_fake("deeprelax::step", lambda *_: None, lib=LIBRARY)

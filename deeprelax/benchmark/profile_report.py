"""A profile as tables, as a picture and as a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from deeprelax.files import write_picture


def place(result: dict[str, Any]) -> str:
    """The machine in words."""
    machine = result["machine"]
    return machine["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}"


def headline(result: dict[str, Any]) -> str:
    """What was profiled."""
    options = "".join(f", {name}={value:g}" for name, value in result["options"].items())
    return (
        f"{result['optimizer']} (L = {result['inner_steps']}{options}), {result['workload']}: "
        f"{result['elements']:,} × {result['dtype']}"
    )


def micro(value: float | None) -> str:
    """Microseconds, with at least three digits."""
    return "" if value is None else f"{value:,.{0 if value >= 100 else 1}f}"


def show(result: dict[str, Any], console: Console) -> None:
    """Print the calls of a cycle and the peers."""
    on_device = result["device"] != "cpu"
    console.print(f"{headline(result)}\n{place(result)}, backend {result['backend']}", highlight=False, soft_wrap=True)
    table = Table(title="one step()", title_justify="left")
    table.add_column("call")
    columns = ("in a cycle", "launches", "kernels µs", "host µs", *(() if on_device else ("together µs",)))
    for heading in (*columns, "bytes/element", "MB", "GB/s", "of a copy's"):
        table.add_column(heading, justify="right")
    length = result["inner_steps"]
    average = {"kind": "average", "calls_per_cycle": length, **result["average"]}
    for r in [*result["calls"], average]:
        if r is average:
            table.add_section()
        table.add_row(
            r["kind"],
            f"{r['calls_per_cycle']} of {length}",
            f"{r['launches']:g}",
            micro(r["kernel_us"]),
            micro(r["host_us"]),
            *(() if on_device else (micro(r["cost_us"]),)),
            f"{r['bytes_per_element']:g}",
            f"{r['bytes'] / 1e6:,.1f}",
            f"{r['gb_per_s']:,.1f}",
            f"{r['of_copy']:.2f}",
        )
    console.print(table)
    copy = result["copy"]
    console.print(
        f"{result['yardstick']} of {copy['bytes'] / 2e6:,.0f} MB: {copy['gb_per_s']:,.1f} GB/s, both directions "
        "counted; "
        + (
            "kernels: the device's time between events, which overlaps the host's"
            if on_device
            else "kernels: the backend's run"
        ),
        highlight=False,
    )
    if any(r["of_copy"] > ABOVE for r in [*result["calls"], *result["peers"]]):
        console.print("above 1: caches still held some of it, or it reads more than it writes, which is faster")
    if any(r["waited"] > 0.5 for r in result["calls"]):
        console.print("the device waited for the host: its time is not that of kernels alone")
    if not result["peers"]:
        return
    table = Table(title="the same parameters with torch's optimizers", title_justify="left")
    table.add_column("peer", no_wrap=True)
    columns = ("kernels µs", "host µs") if on_device else ("step() µs",)
    for heading in (*columns, "bytes/element", "GB/s", "of a copy's", "ours takes"):
        table.add_column(heading, justify="right")
    for r in result["peers"]:
        table.add_row(
            r["name"],
            micro(r["cost_us"]),
            *((micro(r["host_us"]),) if on_device else ()),
            f"{r['bytes_per_element']:g}",
            f"{r['gb_per_s']:,.1f}",
            f"{r['of_copy']:.2f}",
            f"{r['ours_by_this']:.2f} × as long",
        )
    console.print(table)


#: A fraction of the yardstick that noise does not explain.
ABOVE = 1.1

#: The formats of a picture, by how its file's name ends.
PICTURES = (".png", ".svg", ".pdf")

KERNELS: dict[str, Any] = {"color": "0.35", "edgecolor": "black"}
HOST: dict[str, Any] = {"color": "white", "edgecolor": "black", "hatch": "////"}
PEER: dict[str, Any] = {"color": "0.85", "edgecolor": "black", "hatch": "..."}

BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # numbers stand out before the copy's line


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot where the time goes, and the bandwidth as a fraction of a copy's, in greys and hatching alone."""
    rows = [(f"{r['kind']} call" if r["kind"] != "only" else "every call", r) for r in result["calls"]]
    rows += [(f"average of {result['inner_steps']}", result["average"])] if len(rows) > 1 else []
    peers = [(r["name"].removeprefix("torch.optim."), r) for r in result["peers"]]
    figure = Figure(figsize=(11, 1.9 + 0.42 * (len(rows) + len(peers))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_times(left, [r for _, r in rows], [r for _, r in peers], result["device"] != "cpu")
    for i, (_, r) in enumerate(rows + peers):
        right.barh(i, r["gb_per_s"], **(KERNELS if i < len(rows) else PEER))
        number, beside = f"{r['gb_per_s']:,.1f}", {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        right.annotate(number, (r["gb_per_s"], i), **beside, bbox=BLANK)
    copy = result["copy"]["gb_per_s"]
    right.axvline(copy, color="black", linestyle="--", linewidth=1.4, label=f"{result['yardstick']}: {copy:,.1f}")
    right.set_xlim(0, 1.15 * max(copy, *(r["gb_per_s"] for _, r in rows + peers)))
    right.set_xlabel("GB/s of the bytes that have to move")
    left.set_yticks(range(len(rows) + len(peers)), [name for name, _ in rows + peers])
    left.invert_yaxis()
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    figure.suptitle(f"{headline(result)}\n{place(result)}", fontsize="medium")
    write_picture(path, figure, dpi=150)


def draw_times(ax: Axes, ours: list[dict[str, Any]], peers: list[dict[str, Any]], on_device: bool) -> None:
    """Plot milliseconds: on the CPU host time is stacked on kernel time, on other devices it is a separate mark."""
    for i, r in enumerate(ours):
        ax.barh(i, r["kernel_us"] / 1e3, label="kernels" if i == 0 else None, **KERNELS)
        if not on_device:
            label = "host" if i == 0 else None
            ax.barh(i, r["host_us"] / 1e3, left=r["kernel_us"] / 1e3, label=label, **HOST)
    for i, r in enumerate(peers):
        ax.barh(len(ours) + i, r["cost_us"] / 1e3, label="a peer's step()" if i == 0 else None, **PEER)
    for i, r in enumerate([*ours, *peers]):
        ax.text(r["cost_us"] / 1e3, i, f" {r['cost_us'] / 1e3:,.3g}", va="center")
    if on_device:
        hosts = [r["host_us"] / 1e3 for r in [*ours, *peers]]
        ax.plot(hosts, range(len(hosts)), "D", color="black", markerfacecolor="white", label="host, meanwhile")
    ax.set_xlim(0, 1.15 * max([r["cost_us"] / 1e3 for r in [*ours, *peers]] + (hosts if on_device else [])))
    ax.set_xlabel("ms")

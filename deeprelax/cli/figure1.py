"""``deeprelax figure1``."""

from __future__ import annotations

from pathlib import Path

import click

from deeprelax.cli.common import POSITIVE, extras_needed, out_option


@click.command()
@out_option("Where the pictures and the numbers go.", required=True)
@click.option("--function", "name", default="rugged", show_default=True, help="rugged, double-well or tilted-well.")
@click.option("--time", type=POSITIVE, default=0.6, show_default=True, help="T, how long the loss is smoothed.")
@click.option(
    "--beta", type=POSITIVE, default=2.0, show_default=True, help="β; the viscous equation's viscosity is 1/β."
)
@click.option("--temperature", type=POSITIVE, default=0.1, show_default=True, help="Of the three descents' noise.")
@click.option("--animate", is_flag=True, help="Also a GIF of the smoothing growing with t.")
def figure1(out: Path, name: str, time: float, beta: float, temperature: float, animate: bool) -> None:
    """The paper's Figure 1 as PNG, SVG and JSON: a loss, both smoothings, and the densities after descent on each."""
    with extras_needed():
        from deeprelax.pde import figure1 as laboratory
    try:
        laboratory.write(out, name, time, beta, temperature, animate, click.echo)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"--out: {error}") from error

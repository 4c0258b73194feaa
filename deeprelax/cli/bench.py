"""``deeprelax bench``."""

from __future__ import annotations

from pathlib import Path

import click

from deeprelax.cli.common import check_writable, extras_needed, out_option, threads_option


@click.command()
@click.option(
    "--preset", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
    help="quick: a minute or two. full: the sizes and the number of repetitions of the README's figures.",
)  # fmt: skip
@out_option("Where the numbers go.")
@threads_option()
def bench(preset: str, out: Path | None, threads: int | None) -> None:
    """How fast a step() is: nanoseconds per parameter, GB/s, and ratios to torch's own optimizers."""
    with extras_needed():
        from deeprelax.benchmark import throughput

        path = None if out is None else out / "cpu.json"
        if path is not None:
            check_writable("--out", path)
        try:
            throughput.main(preset, path, threads)
        except OSError as error:
            raise click.ClickException(str(error)) from error

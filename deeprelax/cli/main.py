"""The command line: the group of all commands. Only torch and click are imported before a command needs more."""

from __future__ import annotations

import errno
from typing import Any

import click

import deeprelax
from deeprelax.cli.bench import bench
from deeprelax.cli.compare import compare
from deeprelax.cli.doctor import doctor
from deeprelax.cli.figure1 import figure1
from deeprelax.cli.profile import profile
from deeprelax.cli.reproduce import reproduce
from deeprelax.cli.train import train
from deeprelax.terminal import Interruptions, guarded_output, handling


class Commands(click.Group):
    """Commands that finish and keep their results even if their output cannot be printed."""

    def main(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the command; exit status 1 if its output could not be written, and 128 and the signal's number if one
        stopped it. Commands find the ``Interruptions`` in their context's ``obj``."""
        interruptions = Interruptions()
        with guarded_output() as failure, handling(interruptions):
            try:
                return super().main(*arguments, obj=interruptions, **keywords)
            except SystemExit as end:
                if end.code and interruptions.number:
                    raise SystemExit(128 + interruptions.number) from end
                if end.code or (error := failure()) is None:
                    raise
                if error.errno != errno.EPIPE:  # a reader that closes the pipe has read enough
                    click.echo(f"standard output: {error.strerror}; files are not affected", err=True)
                raise SystemExit(1) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(deeprelax.__version__, prog_name="deeprelax")
def main() -> None:
    """Entropy-SGD, HJ and Heat: the optimizers of "Deep Relaxation" (ICML 2017), fused, for PyTorch.

    \b
    deeprelax train      compare them with SGD on a real data set: a minute or two, no download
    deeprelax doctor     what works on this machine, and what to do about the rest
    deeprelax bench      how fast a step() is, compared with torch's own optimizers
    deeprelax profile    where a step's time goes, for your model and optimizer
    deeprelax reproduce  the paper's Table 1 and Figure 2
    deeprelax compare    optimizers on a small set of real tasks, each with the same search
    deeprelax figure1    the paper's Figure 1: a loss and its smoothings
    """


for command in (train, doctor, bench, profile, reproduce, compare, figure1):
    main.add_command(command)

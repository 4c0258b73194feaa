"""``python -m deeprelax``: the command line."""

from deeprelax.cli.main import main

main()

"""``python -m spdsl``: the command, by the Python that is to run it."""

from spdsl.cli.main import main

main()

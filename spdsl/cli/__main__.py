"""``python -m spdsl.cli``: the command without an installation."""

from spdsl.cli.main import main

main()

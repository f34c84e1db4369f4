"""``python -m smartpipe`` is ``smartpipe``."""

from smartpipe.cli import main

main()

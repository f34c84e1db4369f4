"""``python -m smartpipe`` runs the ``smartpipe`` command."""

from smartpipe.cli import main

main()

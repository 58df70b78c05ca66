"""``python -m unetsharp`` is the ``unetsharp`` command."""

from unetsharp.cli import main

main()

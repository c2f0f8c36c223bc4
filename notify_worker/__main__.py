"""`python -m notify_worker` is `notify-worker`."""

from notify_worker.cli.main import main

main()

"""`python -m notify_worker` is `notify-worker`."""

from notify_worker.cli import main

main()

"""The command line, `notify-worker`: one verb for each thing that an operator, a developer or support staff does."""

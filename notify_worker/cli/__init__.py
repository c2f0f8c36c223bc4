"""The command line, `notify-worker`: a verb for each task of operators, developers and support staff."""

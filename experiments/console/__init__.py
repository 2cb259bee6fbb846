"""The command line: flags, errors, what there is to choose."""

"""The files of a run, its log and its progress."""

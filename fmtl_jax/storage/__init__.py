"""Files that are complete or not there, and checkpoints in them."""

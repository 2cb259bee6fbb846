"""What a run keeps on disk and says while it runs."""

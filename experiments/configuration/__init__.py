"""The config schema, and the values that configs name."""

"""Federations out of configurations."""

"""Hints: what a name that is not known was meant to be."""

from collections.abc import Mapping, Sequence
import difflib
from typing import Any


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
  """A hint with the nearest known name; empty if none is near."""
  matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
  return f' Did you mean {matches[0]!r}?' if matches else ''

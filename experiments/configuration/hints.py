"""Parts of error messages: near names, short lists and values, programs."""

from collections.abc import Mapping, Sequence
import difflib
from typing import Any

_PACKAGE = __name__.rpartition('.configuration.')[0]  # Under either name.


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
  """A hint with the nearest known name; empty if none is near."""
  matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
  return f' Did you mean {matches[0]!r}?' if matches else ''


def module(name: str) -> str:
  """The full name of a public module of experiments, such as `main`."""
  return f'{_PACKAGE}.{name}'


def shown(value: Any) -> str:
  """A value on one line of 60 characters at most."""
  text = ' '.join(repr(value).split())
  return text if len(text) <= 60 else f'{text[:57]}...'


def listed(names: Sequence[str], most: int = 8) -> str:
  """Names with commas; of many, the first and how many there are more."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more

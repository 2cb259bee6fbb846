"""Fields that some algorithms read and others do not."""

from collections.abc import Mapping, Sequence
import functools

from . import catalogue
from . import own_code
from . import schema


@functools.cache
def by_field() -> Mapping[str, Sequence[str]]:
  """The algorithms that read a field, of all that not every one reads.

  Numbers of layers and settings of one algorithm; not those that stand in
  `algorithm` itself, which several studies may read.
  """
  having: dict[str, list[str]] = {}
  for name, spec in catalogue.known().items():
    for setting in spec.defaults:
      field = schema.own_field(name, setting)
      if field.count('.') == 2:
        having.setdefault(field, []).append(name)
    for depth in spec.depths:
      having.setdefault(f'algorithm.{depth}', []).append(name)
  return having


def reads(algorithm: str, field: str) -> bool:
  """Whether an algorithm reads one of these fields; '' reads none."""
  if own_code.is_own(algorithm):
    depths = own_code.spec(algorithm).depths
    return field in [f'algorithm.{depth}' for depth in depths]
  return algorithm in by_field()[field]

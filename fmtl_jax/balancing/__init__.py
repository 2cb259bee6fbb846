"""Task balancing: no task dominates what several of them share.

One implementation of each method, mapped where it is used: at a client over its
tasks, over an owner's clients, at the server over tasks (`Places`).

Titles, years and links of the methods' references were compared with public
lists; numbers of algorithms and equations in them are unchecked.
"""

from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any

from fmtl_jax.balancing.base import Balanced
from fmtl_jax.balancing.base import Balancer
from fmtl_jax.balancing.base import combine
from fmtl_jax.balancing.base import Memory
from fmtl_jax.balancing.base import Places
from fmtl_jax.balancing.surgery import cagrad
from fmtl_jax.balancing.surgery import mgda
from fmtl_jax.balancing.surgery import pcgrad
from fmtl_jax.balancing.weighting import dwa
from fmtl_jax.balancing.weighting import famo
from fmtl_jax.balancing.weighting import fedgradnorm
from fmtl_jax.balancing.weighting import fixed
from fmtl_jax.balancing.weighting import gradnorm
from fmtl_jax.balancing.weighting import uncertainty

__all__ = (
  'Balanced',
  'Balancer',
  'METHODS',
  'Memory',
  'NONE',
  'PLACES',
  'Places',
  'SETTINGS',
  'cagrad',
  'check_bounds',
  'combine',
  'dwa',
  'famo',
  'fedgradnorm',
  'fixed',
  'gradnorm',
  'mgda',
  'pcgrad',
  'uncertainty',
)

NONE = 'none'
PLACES = ('client', 'group', 'server')
METHODS: dict[str, Callable[..., Balancer]] = {
  'fixed': fixed,
  'uncertainty': uncertainty,
  'dwa': dwa,
  'gradnorm': gradnorm,
  'fedgradnorm': fedgradnorm,
  'pcgrad': pcgrad,
  'cagrad': cagrad,
  'mgda': mgda,
  'famo': famo,
}
# The settings of all methods by name, and the defaults of their papers.
SETTINGS: dict[str, float] = {
  name: parameter.default
  for method in METHODS.values()
  for name, parameter in inspect.signature(method).parameters.items()
}


def check_bounds(
  chosen: Places, names: Sequence[str], bounds: Sequence[float | None]
) -> None:
  """Raises a ValueError if a method needs a bound that is not known.

  Args:
    chosen: The methods.
    names: The tasks' names.
    bounds: What their losses never fall below, None if not known.
  """
  for place in PLACES:
    balancer = getattr(chosen, place)
    if balancer is None or not balancer.needs_bounds or None not in bounds:
      continue
    raise ValueError(
      f'Expected a lower bound of the loss of task '
      f'{names[list(bounds).index(None)]!r}, which the method of '
      f'balancing.{place} compares by ratio, got none; set its lower_bound, or '
      'take another method.'
    )


def places(
  names: Mapping[str, str],
  settings: Mapping[str, Any] | None = None,
  weights: Sequence[float] = (),
) -> Places:
  """Looks the methods of all places up.

  Args:
    names: A name of `METHODS`, or 'none', by the name of the place.
    settings: Values of `SETTINGS`; each method takes its own.
    weights: Of the tasks at the server.

  Raises:
    ValueError: If a name is not known, or a method does not fit its place.
  """
  found: dict[str, Balancer | None] = {}
  for place, name in names.items():
    if name not in (NONE, *METHODS):
      raise ValueError(
        f'Expected balancing.{place} to be one of '
        f'{", ".join((NONE, *METHODS))}, got {name!r}.'
      )
    found[place] = None
    if name != NONE:
      own = inspect.signature(METHODS[name]).parameters
      given = {k: v for k, v in (settings or {}).items() if k in own}
      found[place] = METHODS[name](**given)
  result = Places(**found, weights=tuple(weights))
  if result.client is not None and result.client.in_rounds:
    raise ValueError(
      f'Expected balancing.client to be a method of steps, got '
      f'{names["client"]!r}, which is of updates; use gradnorm there, or set '
      'balancing.server.'
    )
  if result.group is not None and result.group.uses_losses:
    able = [name for name in METHODS if not METHODS[name]().uses_losses]
    raise ValueError(
      'Expected balancing.group to be a method of updates alone '
      f'({", ".join(able)}), got {names["group"]!r}, which needs losses.'
    )
  return result

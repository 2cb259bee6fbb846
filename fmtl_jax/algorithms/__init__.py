"""Algorithms by name: label rules, client updates and server rules.

Each file describes its algorithm (`SPEC`, or `SPECS` where it has several);
this package finds the files. `build` makes an algorithm by its name;
its factory is in its file, as in `ditto.ditto`.

Deviations of an algorithm from its paper are in a paragraph `Deviations` of its
file. Titles, years and links of references were compared with public
lists; numbers that come from the text of a paper that was not at hand are
marked `(unchecked)`.
"""

from collections.abc import Iterator
import difflib
import importlib
import pkgutil
from typing import Any

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import specs
from fmtl_jax.algorithms.specs import Setting as Setting
from fmtl_jax.algorithms.specs import Spec as Spec
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds.algorithm import Algorithm as Algorithm
from fmtl_jax.rounds.algorithm import Messages as Messages
from fmtl_jax.rounds.round_settings import RoundSettings as RoundSettings

__all__ = (
  'ALGORITHMS',
  'Algorithm',
  'Messages',
  'RoundSettings',
  'Setting',
  'Spec',
  'build',
  'find',
  'register',
)


def _found() -> Iterator[Spec]:
  """The specs of the files of this package."""
  for file in pkgutil.iter_modules(__path__):
    module = importlib.import_module(f'{__name__}.{file.name}')
    yield from getattr(module, 'SPECS', ())
    if hasattr(module, 'SPEC'):
      yield module.SPEC


# In the order of tables: family, year, name.
ALGORITHMS: dict[str, Spec] = specs.ordered(_found())


def register(spec: Spec) -> None:
  """Adds an algorithm from outside of this package.

  From then on it is one of `ALGORITHMS`, in their order.

  Args:
    spec: Of the algorithm.

  Raises:
    ValueError: If there is one of this name or label.
  """
  table = specs.ordered([*ALGORITHMS.values(), spec])
  ALGORITHMS.clear()
  ALGORITHMS.update(table)


def find(name: str) -> Spec:
  """The spec of an algorithm.

  Raises:
    ValueError: If there is none of this name.
  """
  if name not in ALGORITHMS:
    near = difflib.get_close_matches(name, ALGORITHMS, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'Unknown algorithm {name!r}; known are {", ".join(ALGORITHMS)}.{hint}'
    )
  return ALGORITHMS[name]


def build(
  name: str,
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: RoundSettings = RoundSettings(),
  **own: Any,
) -> Algorithm:
  """Builds an algorithm by its name.

  Args:
    name: One of `ALGORITHMS`.
    federation: Network, layer types and tasks; the algorithm's own layer types
      are those of its `label_rules`.
    local: Settings of local training.
    settings: Settings of the round.
    **own: Settings of its own; the defaults are those of its factory.

  Raises:
    ValueError: If there is no such algorithm or setting, or a value is out of
      range.
  """
  spec = find(name)
  spec.check(**own)
  for setting in own:
    if setting in spec.leaf_settings:
      raise ValueError(
        f'Expected {setting!r} of {name} in its label rules, which are those '
        f'of the federation, got it here; call leaf_rules({setting}=...).'
      )
  return spec.build(federation, local, settings, **own)

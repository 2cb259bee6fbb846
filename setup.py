"""Packages: `experiments` and `configs` are installed inside of `fmtl_jax`.

Names as common as theirs belong to the user's own folders. An installation that
is editable has them under the names that they have here, too.
"""

import sys

import setuptools

FOLDERS = ('experiments', 'configs')


def find(folder):
  """A package of this folder and all below it."""
  return setuptools.find_packages(include=[folder, f'{folder}.*'])


beside = [name for folder in FOLDERS for name in find(folder)]
setuptools.setup(
  packages=[
    *find('fmtl_jax'),
    *(f'fmtl_jax.{name}' for name in beside),
    *(beside if 'editable_wheel' in sys.argv else []),
  ],
  package_dir={f'fmtl_jax.{folder}': folder for folder in FOLDERS},
)

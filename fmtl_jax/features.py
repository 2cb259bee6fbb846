"""Features: the outputs of a fixed function, computed once for each example.

A pre-trained network below the first trained layer gives an example the same
features in every round: they are computed before the first one, and training
runs on them. A file keeps them for the next run.
"""

from collections.abc import Callable
import concurrent.futures
import hashlib
import os
import pathlib
from typing import Any
import warnings

import jax
import numpy as np


def precompute(
  feature_fn: Callable[..., jax.Array],
  examples: Any,
  batch_size: int = 256,
  progress: Callable[[int], object] | None = None,
  rows: range | None = None,
  arguments: tuple[Any, ...] = (),
) -> np.ndarray:
  """Applies a function to all examples, in batches of one shape.

  Batches are spread over all devices where their size allows it.

  Args:
    feature_fn: `(*arguments, examples [B, ...]) -> features [B, ...]`; it is
      jitted.
    examples: `[N, ...]`, or anything with a length whose slices are arrays.
    batch_size: B; the last batch is padded with zeros.
    progress: Called with the number of examples after each batch.
    rows: Which examples, one after the other; by default all N.
    arguments: Parameters of the function, say.

  Returns:
    `[N, ...]` features on the host, of the rows asked for.

  Raises:
    ValueError: If there are no examples.
  """
  rows = range(len(examples)) if rows is None else rows
  if not rows:
    raise ValueError('Expected examples to compute features of, got none.')
  devices = jax.local_devices()
  if batch_size % len(devices):
    devices = devices[:1]
  mesh = jax.sharding.Mesh(devices, 'batch')
  by_example, everywhere = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for axes in (('batch',), ())
  )
  compiled = jax.jit(feature_fn)
  arguments = jax.device_put(arguments, everywhere)
  read = lambda start: np.asarray(
    examples[start : min(start + batch_size, rows.stop)]
  )
  parts = []
  # The next batch is read (and decoded) while one is computed.
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    coming = reader.submit(read, rows.start)
    for start in range(rows.start, rows.stop, batch_size):
      batch = coming.result()
      if start + batch_size < rows.stop:
        coming = reader.submit(read, start + batch_size)
      missing = batch_size - len(batch)
      padded = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
      padded = jax.device_put(padded, by_example)
      parts.append(np.asarray(compiled(*arguments, padded))[: len(batch)])
      if progress is not None:
        progress(len(batch))
  return np.concatenate(parts)


def fingerprint(*parts: Any) -> str:
  """A name for the content of trees of arrays, numbers and strings.

  Args:
    *parts: Whatever features depend on: weights, data, preprocessing.

  Returns:
    64 hexadecimal digits; others for another value, dtype, shape or name.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(parts):
    digest.update(jax.tree_util.keystr(path).encode())
    if isinstance(leaf, np.ndarray | jax.Array):
      array = np.asarray(leaf)
      digest.update(f'{array.dtype.str}{array.shape}'.encode())
      digest.update(array.tobytes())
    else:
      digest.update(repr(leaf).encode())
  return digest.hexdigest()


def cached(
  folder: str | os.PathLike[str],
  key: str,
  compute: Callable[[], np.ndarray],
) -> np.ndarray:
  """Reads features from a file, or computes them and writes it.

  A file that is damaged (it has checksums), or that was renamed to look like
  another one, is computed anew with a warning.

  Args:
    folder: Where files are kept; it is made if missing.
    key: What the features depend on, see `fingerprint`.
    compute: Computes them.
  """
  path = pathlib.Path(folder).expanduser() / f'features_{key[:16]}.npz'
  if path.exists():
    try:
      with np.load(path) as file:
        if str(file['key']) == key:
          return file['features']
      problem = 'belongs to other weights, data or preprocessing'
    except Exception as error:  # Whatever a reader makes of damaged files.
      problem = f'cannot be read ({error!r})'
    warnings.warn(
      f'{path} {problem}; its features are computed anew.', stacklevel=2
    )
  features = compute()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with temporary.open('wb') as opened:
      np.savez(opened, key=np.array(key), features=features)
    temporary.replace(path)  # A reader sees all of a file or none.
  finally:
    temporary.unlink(missing_ok=True)
  return features

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
from typing import IO, Any
import warnings

import jax
import numpy as np

from fmtl_jax.storage import digests
from fmtl_jax.storage import temporaries


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
  like: jax.ShapeDtypeStruct | None = None,
) -> np.ndarray:
  """Reads features from a file, or computes them and writes it.

  A file that is damaged, that was renamed to look like another one or that has
  features of another shape or dtype is computed anew with a warning.

  Args:
    folder: Where files are kept; it is made if missing.
    key: What the features depend on, see `fingerprint`.
    compute: Computes them.
    like: Their shape and dtype, where they are known.
  """
  path = pathlib.Path(folder).expanduser() / f'features_{key[:16]}.npz'
  if path.exists():
    try:
      problem, found = _read(path, key, like)
      if found is not None:
        return found
    except Exception as error:  # Whatever a reader makes of damaged files.
      problem = f'cannot be read ({error!r})'
    warnings.warn(
      f'{path} {problem}; its features are computed anew.', stacklevel=2
    )
  features = compute()
  digest = digests.of_arrays({key: features})
  with (
    temporaries.renamed(path) as temporary,
    temporary.open('wb') as opened,
  ):
    np.savez(
      opened, key=np.array(key), features=features, digest=np.array(digest)
    )
  return features


def _read(
  path: pathlib.Path, key: str, like: jax.ShapeDtypeStruct | None
) -> tuple[str, np.ndarray | None]:
  """What is wrong with a file of features, or what it holds."""
  with np.load(path) as file:  # It reads no pickles.
    if str(file['key']) != key:
      return 'belongs to other weights, data or preprocessing', None
    # Before they take memory: a small file may hold many zeros.
    there = _shape(file.zip.open('features.npy'))
    if like is not None and there != jax.ShapeDtypeStruct(
      like.shape, like.dtype
    ):
      return (
        f'has features of shape {there.shape} and dtype {there.dtype}, not '
        f'{like.shape} and {np.dtype(like.dtype)}'
      ), None
    features = file['features']
    # Version 0 wrote none; zip has a checksum of its own.
    if 'digest' in file and str(file['digest']) != digests.of_arrays(
      {key: features}
    ):
      return 'has other features than were written', None
  return '', features


def _shape(file: IO[bytes]) -> jax.ShapeDtypeStruct:
  """What the header of an array in NumPy's format says of it."""
  with file:
    if np.lib.format.read_magic(file) != (1, 0):
      raise ValueError('its features are in another version of the format')
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  return jax.ShapeDtypeStruct(shape, dtype)

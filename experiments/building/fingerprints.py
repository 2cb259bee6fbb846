"""Fingerprints: whether data are those that a run started with.

A config says which data are loaded and how, not their content: files change,
and so does the code of a source. A folder keeps a fingerprint of the data as
the source returned them, before any backbone. Other data are refused with the
differences; other code that returns the same data causes a warning.

The fingerprint of an array in memory covers every byte. That of an array which
is read lazily (a memory map, or any other object with shape and dtype) covers
shape, dtype and `SAMPLE` evenly spaced rows, the first and the last among them.
Photographs have a fingerprint of their own, of all their files.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
import hashlib
import inspect
import json
import pathlib
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import workdirs
from . import datasets
from . import sources
import fmtl_jax
from fmtl_jax.data import features
from fmtl_jax.data import images
from fmtl_jax.data import label_checks
from fmtl_jax.storage import checkpoints

SAMPLE = 1024  # Rows of an array that is not in memory.
CODE = 'code'
_CHUNK = 1 << 24  # Bytes that are hashed at a time.
_ARRAYS = ('features', 'labels', 'strata', 'keys', 'runs')
_PLAIN = ('shared_labels', 'standardized_axes')
_SPLITS = 'data.splits'
_OWN = (__name__.split('.')[0], 'fmtl_jax')
# Fields whose files hold trained parameters.
_WEIGHTS = ('model.pretrained', 'model.backbone_weights')


def of_source(source: sources.Source, name: str) -> dict[str, Any]:
  """The fingerprint of data, as JSON values by name.

  Args:
    source: As it was loaded.
    name: Its `data.name`.
  """
  found: dict[str, Any] = {
    field: _of_arrays(getattr(source, field)) for field in _ARRAYS
  }
  found['tasks'] = [
    [
      *(task.name, task.definition.name, task.column),
      *(metric.name for metric in task.metrics),
    ]
    for task in source.tasks
  ]
  found |= {field: getattr(source, field) for field in _PLAIN}
  found[CODE] = of_code(datasets.loader(name))
  return json.loads(json.dumps(found, default=str))


def of_own_code(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fingerprints of a user's code beside the source, by name."""
  found = {}
  if config.data.tasks:
    tasks = own_code.function(own_code.TASKS, config.data.tasks)
    found[workdirs.CODE_OF + config.data.tasks] = of_code(tasks)
  for name in filter(own_code.is_own, config.data.metrics):
    metric = own_code.find(own_code.METRICS, name)
    found[workdirs.CODE_OF + name] = of_code(metric.values or metric.of_set)
  if own_code.is_own(config.model.name):
    network = own_code.function(own_code.MODEL, config.model.name)
    found[workdirs.CODE_OF + config.model.name] = of_code(network)
  for name in own_code.names_in(config):
    found[workdirs.CODE_OF + name] = of_code(own_code.spec(name).build)
  return found


def is_code(name: str) -> bool:
  """Whether a part of a fingerprint is of code, which changes no data."""
  return name == CODE or name.startswith(workdirs.CODE_OF)


def of_weights(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fingerprints of trained parameters that cases begin with, by field."""
  found = {}
  for field, value in config_lib.flatten(config).items():
    if field.endswith(_WEIGHTS[0]) and value:
      with contextlib.suppress(ValueError):  # Reported where they are used.
        params, _ = checkpoints.load_params(value)
        found[field] = features.fingerprint(params)
  return found


def of_splits(data: ml_collections.ConfigDict) -> dict[str, str]:
  """The fingerprint of the files of splits, if there are some.

  Args:
    data: The config's `data`.
  """
  if not data.splits:
    return {}
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(data.splits).expanduser().glob('*.csv')):
    digest.update(
      path.name.encode() + hashlib.sha256(path.read_bytes()).digest()
    )
  return {_SPLITS: digest.hexdigest()}


def of_code(function: Callable[..., Any]) -> str:
  """Names the code of a source.

  That of this project has a version; of a user's function it is the content of
  the file in which it stands, and of those of the same package, or in the same
  folder, that it uses.
  """
  while isinstance(function, functools.partial):
    function = function.func
  function = inspect.unwrap(function)
  if not inspect.isroutine(function):  # An object that is called.
    function = type(function).__call__
  module = str(getattr(function, '__module__', None))
  if module.split('.')[0] in _OWN:
    return f'fmtl_jax {fmtl_jax.__version__}'
  name = f'{module}.{function.__qualname__}'
  try:
    files = [pathlib.Path(inspect.getfile(function)), *_files_used(module)]
    contents = [path.read_bytes() for path in dict.fromkeys(files)]
  except (OSError, TypeError):  # Typed in, or compiled.
    return name
  digest = hashlib.sha256(contents[0])
  for content in contents[1:]:
    digest.update(hashlib.sha256(content).digest())
  return f'{name} {digest.hexdigest()}'


def _files_used(name: str) -> list[pathlib.Path]:
  """The files of a module and of what it has of its own package or folder."""
  found: dict[str, pathlib.Path] = {}
  package, folder = name.split('.')[0], None
  waiting = [name]
  while waiting:
    name = waiting.pop()
    module = sys.modules.get(name)
    file = getattr(module, '__file__', None)
    if file is None or name in found:
      continue
    path = pathlib.Path(file)
    folder = folder or path.parent
    if name.split('.')[0] != package and path.parent != folder:
      continue
    found[name] = path
    names = {
      v.__name__ if inspect.ismodule(v) else getattr(v, '__module__', None)
      for v in vars(module).values()
    }
    waiting += sorted(n for n in names if isinstance(n, str))
  return [found[name] for name in sorted(found)]


def _of_arrays(arrays: Any) -> Any:
  """The fingerprint of an array; of a tree, those of its arrays by path."""
  if not label_checks.is_tree(arrays) or isinstance(arrays, images.Images):
    return _of_array(arrays)
  paths, _ = jax.tree.flatten_with_path(arrays)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): _of_array(leaf)
    for path, leaf in paths
  }


def _of_array(array: Any) -> dict[str, Any] | None:
  """Shape, dtype and a hash of the values, None of what is not there."""
  if array is None:
    return None
  if isinstance(array, images.Images):
    return {'shape': list(array.shape), 'sha256': array.content()}
  if not hasattr(array, 'dtype'):
    array = np.asarray(array)
  found = {'shape': list(array.shape), 'dtype': str(array.dtype)}
  if isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
    return found | {'sha256': _hash(array)}
  count = array.shape[0]
  rows = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int))
  return found | {
    'sampled_rows': len(rows),
    'sha256': _hash(np.stack([np.asarray(array[int(row)]) for row in rows])),
  }


def _hash(array: np.ndarray) -> str:
  """The hash of all values, in the order of rows."""
  digest = hashlib.sha256()
  if array.dtype.hasobject:  # Texts, whose bytes are addresses.
    digest.update(repr(array.tolist()).encode(errors='backslashreplace'))
    return digest.hexdigest()
  rows = max(1, _CHUNK * len(array) // max(array.nbytes, 1))
  for start in range(0, len(array), rows):
    digest.update(array[start : start + rows].tobytes())
  return digest.hexdigest()


def check(workdir: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Checks that a run may be resumed with data; nothing is written.

  A folder that has no fingerprint is taken, as is one without a run.

  Args:
    workdir: It need not exist.
    found: The fingerprint of the data that there are now.

  Raises:
    ValueError: If the data are others; the sentence says what differs.
  """
  if not (workdir / workdirs.CONFIG).is_file():
    return
  there = workdirs.read_config(workdir).get(workdirs.DATA)
  if not isinstance(there, dict):
    return
  differing = [
    _difference(name, there.get(name), found.get(name))
    for name in dict.fromkeys([*there, *found])
    if not is_code(name) and there.get(name) != found.get(name)
  ]
  if differing:
    raise ValueError(
      f'--workdir={workdir} holds a run on other data: {"; ".join(differing)}; '
      'name a new folder, or give the same data to resume that run.'
    )
  if there.get(CODE) != found.get(CODE):
    print(
      'warning: The code that loads the data was changed since the run in '
      f'{workdir} began; the data are the same.',
      file=sys.stderr,
    )
  for name, code in found.items():
    if name.startswith(workdirs.CODE_OF) and there.get(name, code) != code:
      print(
        f'warning: The {name} was changed since the run in {workdir} began; '
        'what is finished there has the numbers of the code before.',
        file=sys.stderr,
      )


def _difference(name: str, there: Any, here: Any) -> str:
  """The difference in words, without hashes."""
  if isinstance(there, dict) and isinstance(here, dict):
    for part in ('shape', 'dtype'):
      if there.get(part) != here.get(part):
        return (
          f'the {part} of its {name} was {there.get(part)} and is '
          f'{here.get(part)} now'
        )
    return f'its {name} had other values'
  if there is None or here is None:
    return f'it had {"no " if there is None else ""}{name}, and now ' + (
      'has' if there is None else 'has none'
    )
  if name == _SPLITS:
    return f'the files in {name} were others'
  if name.endswith(_WEIGHTS):
    return f'the parameters in {name} were others'
  return f'its {name} were {there} and are {here} now'

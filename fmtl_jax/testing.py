"""Toy federations for tests, small enough to check by hand.

Two kinds: random ones of every shape (several tasks, slots, unequal sizes,
missing labels, kinds of tasks) to compare two ways of computing the same, and
mean estimation, where the answer is known in closed form.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import os
from typing import Any
import unittest

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Model = tuple[Callable[[jax.Array], Tree], Callable[[Tree, Any], jax.Array]]

# One full-batch step on the squared error of a constant reaches the mean.
TO_THE_MEAN = local_optimizers.LocalSgd(learning_rate=0.5, batch_size=0)

# Algorithms that are `multi_task_fl` under other label rules, which a round
# knows as labels of leaves. `multi_task_fl`, which has all layer types,
# `isolated`, which sends nothing, and `fedbn`, whose layers are of two types,
# stand for them in laws of what does not depend on the rule.
OTHER_LABELS = (
  'separate_fl',
  'fedavg',
  'mtfl',
  'fedit',
  'ffa_lora',
  'fedsa_lora',
  'fedper',
  'lg_fedavg',
  'hard_sharing',
)


def mlp(widths: Sequence[int]) -> Model:
  """A perceptron with tanh between dense layers `layer_0`, `layer_1`, ...

  It is smooth, so that rounding stays rounding.

  Args:
    widths: Of the features, the hidden layers and the outputs.
  """
  shapes = list(zip(widths[:-1], widths[1:], strict=True))

  def init(key):
    return {
      f'layer_{i}': {
        'kernel': jax.random.normal(jax.random.fold_in(key, i), shape)
        / np.sqrt(shape[0]),
        'bias': jnp.linspace(-0.5, 0.5, shape[1]),
      }
      for i, shape in enumerate(shapes)
    }

  def apply(params, features):
    x = features
    for i in range(len(shapes)):
      layer = params[f'layer_{i}']
      x = jnp.tanh(x) if i else x
      x = x @ layer['kernel'] + layer['bias'][None]
    return x

  return init, apply


def constant() -> Model:
  """A model that answers `output/bias`, zero at first, to everything."""

  def init(unused_key):
    return {'output': {'bias': jnp.zeros(1)}}

  def apply(params, features):
    shape = (jax.tree.leaves(features)[0].shape[0], 1)
    return jnp.broadcast_to(params['output']['bias'], shape)

  return init, apply


def toy_data(
  num_clients: int = 7,
  num_tasks: int = 3,
  num_slots: int = 1,
  *,
  sizes: Sequence[int] = (5, 2, 7, 3),
  kinds: Sequence[str] = (tasks_lib.MULTICLASS, tasks_lib.BINARY),
  missing: float = 0.0,
  num_features: int = 3,
  seed: int = 0,
) -> dataset_lib.FederatedDataset:
  """Random examples whose labels follow a linear teacher for each task.

  Client m holds the tasks m, m + 1, ... modulo T; with several slots, the last
  slot of every third client is empty. Task t has label column t and, if it is
  multi-class, `3 + t` classes.

  Args:
    num_clients: M, at least T.
    num_tasks: T.
    num_slots: S, at most T.
    sizes: Training examples of the clients, repeated. Client m has `1 + m % 2`
      test examples on top.
    kinds: The tasks' kinds, repeated.
    missing: The share of labels that is missing; a client's first training
      example and its test examples have all.
    num_features: Width of the features.
    seed: Of the examples.
  """
  rng = np.random.default_rng(seed)
  tasks = []
  for number in range(num_tasks):
    kind = kinds[number % len(kinds)]
    classes = {tasks_lib.MULTICLASS: 3 + number, tasks_lib.BINARY: 2}.get(
      kind, 0
    )
    tasks.append(
      tasks_lib.Task(
        name=f'task_{number}',
        kind=kind,
        num_classes=classes,
        column=number,
      )
    )
  holders = (np.arange(num_clients)[:, None] + np.arange(num_slots)) % num_tasks
  if num_slots > 1:
    holders[2::3, -1] = -1
  train_sizes = [sizes[m % len(sizes)] for m in range(num_clients)]
  test_sizes = [1 + m % 2 for m in range(num_clients)]
  ends = np.cumsum(np.add(train_sizes, test_sizes))
  rows = np.split(np.arange(ends[-1]), ends[:-1])
  train = [r[:size] for r, size in zip(rows, train_sizes, strict=True)]
  features = rng.normal(size=(ends[-1], num_features)).astype(np.float32)
  labels = np.zeros((len(features), num_tasks), np.float32)
  for task in tasks:
    scores = features @ rng.normal(size=(num_features, task.num_outputs))
    scores += 0.5 * rng.normal(size=scores.shape)
    labels[:, task.column] = {
      tasks_lib.MULTICLASS: scores.argmax(1),
      tasks_lib.BINARY: scores[:, 0] > 0,
      tasks_lib.REGRESSION: scores[:, 0],
    }[task.definition.name]
  absent = rng.random(labels.shape) < missing
  for client_train, client_rows in zip(train, rows, strict=True):
    absent[client_train[0]] = False
    absent[client_rows[len(client_train) :]] = False
  return dataset_lib.FederatedDataset.create(
    features=features,
    labels=np.where(absent, np.nan, labels),
    tasks=tasks,
    client_tasks=holders,
    train=train,
    test=[r[size:] for r, size in zip(rows, train_sizes, strict=True)],
  )


def toy_federation(
  types: Sequence[str | tuple[str, str]] = ('common', 'task'),
  data: dataset_lib.FederatedDataset | None = None,
  *,
  width: int = 4,
  **settings: Any,
) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
  """Puts a perceptron on toy data, one layer for each of the layer types.

  Args:
    types: Layer types from the input to the output; a pair for one whose
      kernel and bias differ.
    data: By default `toy_data()`.
    width: Of the hidden layers.
    **settings: Further arguments of `Federation.create`. Pre-trained layers get
      random values by default.

  Returns:
    The federation and its data.
  """
  data = toy_data() if data is None else data
  num_features = np.shape(data.examples.features)[1]
  outputs = tasks_lib.num_outputs(data.tasks)
  model = mlp([num_features] + [width] * (len(types) - 1) + [outputs])
  rules = []
  for i, given in enumerate(types):
    kernel, bias = (given, given) if isinstance(given, str) else given
    rules += [(f'layer_{i}/kernel', kernel), (f'layer_{i}/bias', bias)]
  if any('pretrained' in rule for rule in rules):
    settings = {'pretrained': model[0](jax.random.key(100))} | settings
  return federation_lib.Federation.create(model, rules, data, **settings), data


def mean_estimation(
  labels: Sequence[Sequence[float]],
  client_tasks: Sequence[int],
  layer_type: str,
  **settings: Any,
) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
  """A federation that estimates means: a single parameter, squared error.

  With local training `TO_THE_MEAN` a client's copy becomes the mean of its
  labels in one round. So, with weights by examples, a common layer becomes the
  mean of all labels of the cohort, a task-specific one the mean of its task's
  and a personal one that of its client's.

  Args:
    labels: The labels of each client.
    client_tasks: The task of each client.
    layer_type: Of the parameter, `output/bias`.
    **settings: Further arguments of `Federation.create`.

  Returns:
    The federation and its data.
  """
  tasks = [
    tasks_lib.Task(
      name=f'task_{number}', kind=tasks_lib.REGRESSION, num_classes=0
    )
    for number in range(max(client_tasks) + 1)
  ]
  data = dataset_lib.FederatedDataset.from_clients(
    [np.zeros((len(y), 1), np.float32) for y in labels],
    labels,
    client_tasks,
    tasks,
  )
  rules = [('output/bias', layer_type)]
  federation = federation_lib.Federation.create(
    constant(), rules, data, **settings
  )
  return federation, data


def use_cpu_devices(count: int) -> None:
  """Sets the number of CPU devices, before JAX starts.

  Older versions refuse to be told again once it has, even the same number.

  Args:
    count: Of devices; the environment variable `TESTS_DEVICES` overrides it.
  """
  count = int(os.environ.get('TESTS_DEVICES') or count)
  if jax.config.values.get('jax_num_cpu_devices') != count:
    jax.config.update('jax_num_cpu_devices', count)


def need_devices(count: int) -> None:
  """Skips the test, with this reason, where there are fewer devices."""
  found = jax.device_count()
  if found < count:
    raise unittest.SkipTest(
      f'Needs {count} devices, has {found} ({jax.default_backend()}).'
    )


def need_cpu(reason: str) -> None:
  """Skips the test, with the reason, where programs do not run on CPU."""
  if jax.default_backend() != 'cpu':
    raise unittest.SkipTest(f'On CPU alone: {reason}.')


def mesh(axes: Mapping[str, int]) -> jax.sharding.Mesh:
  """As `execution.mesh`, of devices that the test needs."""
  need_devices(math.prod(axes.values()))
  return execution.mesh(axes)


def jit(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
  """Jits a function in a quarter of the usual time to compile.

  Compiling is nearly all that a test on toys does, and what comes out need not
  be fast.

  Args:
    function: Of arrays.
    **settings: Further arguments of `jax.jit`.
  """
  options = execution.quick_options()
  return jax.jit(function, compiler_options=options, **settings)


def assert_trees_equal(actual: Tree, expected: Tree) -> None:
  """Raises an AssertionError unless trees agree in every bit of every leaf."""
  _assert_trees(np.testing.assert_array_equal, actual, expected, strict=True)


def assert_sums_equal(actual: Tree, expected: Tree) -> None:
  """As `assert_trees_equal` of what two runs of the same program sum up.

  Where devices sum in any order, as GPUs do, trees need to agree up to rounding
  only.

  Args:
    actual: A tree of arrays.
    expected: A tree of the same structure.
  """
  if jax.default_backend() == 'cpu':
    assert_trees_equal(actual, expected)
  else:
    assert_trees_close(actual, expected)


def assert_trees_close(
  actual: Tree, expected: Tree, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
  """Raises an AssertionError unless trees agree up to rounding.

  Args:
    actual: A tree of arrays.
    expected: A tree of the same structure.
    rtol: Relative tolerance.
    atol: Absolute tolerance.
  """
  _assert_trees(
    np.testing.assert_allclose, actual, expected, rtol=rtol, atol=atol
  )


def _assert_trees(compare, actual, expected, **settings):
  """Compares leaf by leaf; the message says which leaf it is."""
  leaves, _ = jax.tree.flatten_with_path(actual)
  structure: Any = jax.tree.structure(actual)
  other_structure: Any = jax.tree.structure(expected)
  if structure != other_structure:
    raise AssertionError(f'Different trees: {structure} and {other_structure}.')
  for (path, leaf), other in zip(
    leaves, jax.tree.leaves(expected), strict=True
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    compare(_host(leaf), _host(other), err_msg=name, **settings)


def _host(leaf):
  """A NumPy array, of the bits of a key where it is one."""
  leaf = jnp.asarray(leaf) if not isinstance(leaf, np.ndarray) else leaf
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)

"""Predictors: what was trained, as a plain model of one client or one task."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision as precision_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import precision
from fmtl_jax.data import standardization
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.storage import saved_models

Tree = Any
NOBODY = 'nobody'  # Owns what is not trained.
NO_CLASS = -1  # Of an example whose outputs are not finite.
_STANDARDIZATION = 'standardization'  # Its place beside saved parameters.
_MATMUL = 'matmul_precision'
_LAYER_TYPES, _OWNERS = 'layer_types', 'owners'
_TASK_FIELDS = (
  *('name', 'kind', 'num_classes', 'column', 'offset', 'unit'),
  'lower_bound',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
  """A trained model for one task.

  Attributes:
    apply_fn: `(params, features [B, ...]) -> outputs [B, ..., O]`.
    params: A plain tree without owner axes, all layers in it.
    task: What it predicts.
    standardization: `(mean, scale)` of the features it was trained on, as in
      `Partition`; None leaves features as they are.
    matmul_precision: Of matrix products, as in `RoundSettings`.
    layer_types: The layer type of each leaf of `params`, by path, as far as
      they are known.
    owners: Whose copy it is, by path: `all clients`, `task odd`, `client 3`,
      `cluster 1`; `nobody`, where it is not trained.
  """

  apply_fn: Callable[[Tree, Any], jax.Array]
  params: Tree = dataclasses.field(repr=False)
  task: tasks_lib.Task
  standardization: tuple[Any, Any] | None = None
  matmul_precision: str | None = precision_lib.HIGHEST
  layer_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
  owners: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def outputs(self, features: Any) -> jax.Array:
    """The task's outputs, `[B, ..., num_outputs]`: logits, values as labels."""
    if self.standardization is not None:
      standardize = lambda x: _standardized(x, self.standardization)
      features = jax.tree.map(standardize, features)
    features = jax.tree.map(jnp.asarray, features)
    with precision_lib.products(self.matmul_precision):
      outputs = self.apply_fn(self.params, features)
    return outputs[..., : self.task.num_outputs]

  def probabilities(self, features: Any) -> jax.Array:
    """Class probabilities `[B, num_classes]`, NaN where an output is no number.

    Raises:
      ValueError: For a task that has none, such as a regression.
    """
    kind = self.task.definition
    if kind.probabilities is None:
      raise ValueError(
        f'The task {self.task.name!r} is a {kind.name}: it has no '
        'probabilities; call predict.'
      )
    return kind.probabilities(self.outputs(features))

  def predict(self, features: Any) -> Any:
    """Classes `[B]` int32, the values `[B]` of a regression, or the kind's.

    A class is `NO_CLASS` where an output is not finite. Values of a task with
    an offset or unit are in NumPy's float64, so that they keep their digits.
    """
    outputs, kind = self.outputs(features), self.task.definition
    predictions = kind.predict(outputs)
    if kind.has_classes:
      return jnp.where(jnp.isfinite(outputs).all(1), predictions, NO_CLASS)
    if kind.has_unit and (self.task.offset, self.task.unit) != (0, 1):
      values = np.asarray(predictions, np.float64)
      return self.task.offset + self.task.unit * values
    return predictions

  def save(
    self,
    folder: str | pathlib.Path,
    form: str = saved_models.ORBAX,
    texts: Mapping[str, str] = types.MappingProxyType({}),
  ) -> None:
    """Saves parameters and task; raises a ValueError if the folder exists.

    Of a task it is what predictions need: its kind by name, neither a loss nor
    metrics of its own.

    Args:
      folder: A new one.
      form: `orbax`, or `safetensors` for one file that other libraries read,
        too: a tensor for each leaf, layer types and owners in its metadata.
      texts: Further files in the folder, such as a model card, by name.
    """
    params = dict(self.params)
    if self.standardization is not None:
      params[_STANDARDIZATION] = dict(
        zip(('mean', 'scale'), self.standardization, strict=True)
      )
    fields = {name: getattr(self.task, name) for name in _TASK_FIELDS}
    fields['kind'] = self.task.definition.name
    metadata = {
      'task': fields,
      _MATMUL: self.matmul_precision,
      _LAYER_TYPES: dict(self.layer_types),
      _OWNERS: dict(self.owners),
    }
    saved_models.save_params(folder, params, metadata, form, texts)

  @classmethod
  def load(
    cls,
    folder: str | pathlib.Path,
    apply_fn: Callable[[Tree, Any], jax.Array],
    kinds: Sequence[tasks_lib.Kind] = (),
  ) -> 'Predictor':
    """Loads what `save` saved.

    Args:
      folder: As of `save`, in any form; or a `model.safetensors` itself.
      apply_fn: The network; `precision.computed` makes that of a federation
        that computes in bfloat16.
      kinds: Kinds of one's own, of which its task may be; by their names.

    Raises:
      ValueError: If the folder does not say what it should.
    """
    params, metadata = saved_models.load_params(folder)
    saved = params.pop(_STANDARDIZATION, None)
    own = {kind.name: kind for kind in (tasks_lib.TOKENS, *kinds)}
    try:
      fields = metadata['task']
      name = fields['kind']
      return cls(
        apply_fn=apply_fn,
        params=params,
        task=tasks_lib.Task(**fields | {'kind': own.get(name, name)}),
        standardization=saved and (saved['mean'], saved['scale']),
        matmul_precision=metadata.get(_MATMUL, precision_lib.HIGHEST),
        layer_types=metadata.get(_LAYER_TYPES, {}),
        owners=metadata.get(_OWNERS, {}),
      )
    except (KeyError, TypeError) as error:
      raise ValueError(
        f'The saved model in {folder} does not say its task or '
        f'standardization ({error!r}); save it again.'
      ) from error


def _standardized(features: Any, statistics: tuple[Any, Any]) -> Any:
  """Standardizes; in float64 what float32 cannot hold."""
  if isinstance(features, np.ndarray) and precision.is_wide(features.dtype):
    return standardization.apply(features, statistics)
  mean, scale = (jnp.asarray(x, jnp.float32) for x in statistics)
  return (jnp.asarray(features) - mean) * scale


def check_task(data: dataset_lib.FederatedDataset, task: str) -> None:
  """Raises a ValueError if a federation has no task of a name."""
  names = [t.name for t in data.tasks]
  if task not in names:
    raise ValueError(
      f'Expected a task out of {", ".join(names)}, got {task!r}.'
    )


def check_client(
  data: dataset_lib.FederatedDataset, client: int, slot: int
) -> None:
  """Raises a ValueError if a client does not exist or its slot is empty."""
  if not 0 <= client < data.num_clients:
    raise ValueError(
      f'Expected a client below {data.num_clients}, got {client}.'
    )
  tasks = np.asarray(data.partition.client_tasks)[client]
  if not 0 <= slot < len(tasks) or tasks[slot] >= data.num_tasks:
    raise ValueError(
      f'Expected a slot of client {data.partition.client_ids[client]} that '
      f'holds a task, got {slot}.'
    )


def client_predictor(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  client: int,
  slot: int = 0,
  frozen: Tree = None,
) -> Predictor:
  """The model with which a client predicts one of its tasks.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Says with which parameters a client predicts.
    state: After any round.
    data: The federation's data.
    client: Its place in the data set, from 0; `partition.client_ids` says
      which id stands there.
    slot: Which of its tasks.
    frozen: The pre-trained leaves; by default the federation's.

  Raises:
    ValueError: If there is no such client or its slot is empty.
  """
  tasks = np.asarray(data.partition.client_tasks)
  check_client(data, client, slot)
  frozen = federation.frozen if frozen is None else frozen
  cohort = cohorts.select(
    data, jnp.array([client]), jnp.ones((1, data.num_slots), bool)
  )
  row = jax.tree.map(lambda x: x[0], cohort)
  view = algorithm.view(state, data, row, frozen)
  trained = federation.slot_view(view, jnp.array(slot))
  paths = layer_types.paths(federation.labels)
  labels = jax.tree.leaves(federation.labels)
  return Predictor(
    apply_fn=_apply_fn(federation, int(tasks[client, slot])),
    params=layer_types.merge(trained, frozen),
    layer_types=dict(zip(paths, labels, strict=True)),
    owners={
      **dict.fromkeys(paths, NOBODY),
      **_owners(federation, state, trained, data, client, slot),
    },
    task=_task_in_units(data, int(tasks[client, slot])),
    standardization=data.partition.standardization,
    matmul_precision=algorithm.matmul_precision,
  )


def _apply_fn(federation, task):
  """The network, as the loss of a task sees its outputs."""
  if federation.answer_fn is None:
    return federation.apply_fn
  return lambda params, features: federation.answers(
    federation.apply_fn(params, features), jnp.int32(task)
  )


def _task_in_units(data, number):
  """A task that knows how its targets were standardized."""
  task, targets = data.tasks[number], data.partition.targets
  if targets is None or not task.definition.has_unit:
    return task
  offset, unit = (float(np.asarray(x)[number]) for x in targets[:2])
  return standardization.in_units(task, offset, unit)


def _owners(federation, state, trained, data, client, slot):
  """Whose copy each trained leaf is, by path.

  A client may predict with another copy than that of the owner of its layer
  type, such as one that it trains before: then it is the client's.
  """
  partition = data.partition
  own = f'client {partition.client_ids[client]}'
  task = int(np.asarray(partition.client_tasks)[client, slot])
  found = {}
  for path, layer_type, leaf, copies in zip(
    layer_types.paths(trained),
    *map(jax.tree.leaves, (federation.layer_types, trained, state.params)),
    strict=True,
  ):
    index = federation.owners[layer_type].index
    is_copy = lambda copy, leaf=leaf: np.array_equal(copy, leaf, equal_nan=True)
    found[path] = own
    if index is None and is_copy(copies):
      found[path] = 'all clients'
    elif index == 'task' and is_copy(copies[task]):
      found[path] = f'task {data.tasks[task].name}'
    elif index not in (None, 'task', 'client'):
      numbers = [i for i, copy in enumerate(copies) if is_copy(copy)]
      found[path] = f'{index} {numbers[0]}' if numbers else own
  return found


def task_predictor(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  task: str,
  frozen: Tree = None,
) -> Predictor:
  """The model that all clients of a task share.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Says with which parameters a client predicts.
    state: After any round.
    data: The federation's data.
    task: Its name.
    frozen: The pre-trained leaves; by default the federation's.

  Raises:
    ValueError: If there is no such task, or its clients have models of their
      own.
  """
  check_task(data, task)
  names = [t.name for t in data.tasks]
  if algorithm.personal:
    raise ValueError(
      f'The clients of task {task!r} have models of their own; call '
      'client_predictor.'
    )
  member = data.partition.members.groups()[names.index(task)][0]
  client, slot = divmod(int(member), data.num_slots)
  return client_predictor(
    federation, algorithm, state, data, client, slot, frozen
  )

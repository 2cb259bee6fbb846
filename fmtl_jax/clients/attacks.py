"""Attacks: clients that send falsified updates.

For tests of robust aggregators. Attackers are marked in the data set (`mark`),
by an index of the cohort, so that they are the same in every execution mode; an
attack (`Attack`) is a setting of the round. Without one nothing is compiled in.

`sign_flip`   sends `-scale` times the update
`noise`       adds Gaussian noise to every leaf of the update, with `scale`
              times the leaf's root mean square as its standard deviation
`label_flip`  trains on wrong labels: 1 - y, C - 1 - y of C classes, -y, or what
              the kind of the task says
`nan`         sends NaN

The update of the averaged layers is falsified. Layers that a client owns and
its state are not, nor is the rest of its message (`server_optimizers.
ServerRule`), whose mean no robust aggregator protects. With an attack, clients
do not train kernels in factored form.

Updates of attackers are not watched for NaN. Evaluations leave attackers out:
out of the models of a task where clients have models of their own, and out of
the view `client`. Training losses are those of all clients.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import examples as examples_lib

Tree = Any

NONE = 'none'
LABEL_FLIP = 'label_flip'
INDEX = 'attacker'  # Of the cohort; 1 for attackers, 0 for the others.
_NOISE = 2**32 - 1  # Folded into a client's key; no epoch has this number.


def _sign_flip(unused_key, update, scale):
  return jax.tree.map(lambda leaf: -scale * leaf, update)


def _noise(key, update, scale):
  leaves = jax.tree.leaves(update)
  key = jax.random.fold_in(random_bits.narrow(key), _NOISE)
  keys = jax.random.split(key, len(leaves))

  def one(key, leaf):
    size = scale * jnp.sqrt(jnp.square(leaf).mean())
    return leaf + size * jax.random.normal(key, leaf.shape, leaf.dtype)

  noisy = list(map(one, keys, leaves))
  return jax.tree.unflatten(jax.tree.structure(update), noisy)


def _nan(unused_key, update, unused_scale):
  return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), update)


# `(key, update, scale) -> what is sent`; a client's key, which is not consumed.
_SENT: dict[str, Callable[..., Tree]] = {
  'sign_flip': _sign_flip,
  'noise': _noise,
  LABEL_FLIP: lambda unused_key, update, unused_scale: update,
  'nan': _nan,
}
NAMES = (NONE, *_SENT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
  """The attack of all attackers.

  Attributes:
    name: One of `NAMES`, but `none`.
    scale: Of `sign_flip` and `noise`; may be traced.
  """

  name: str
  scale: jax.Array | float = 10.0


def get(name: str, scale: jax.Array | float = 10.0) -> Attack | None:
  """The attack with a name, None for `none`; raises a ValueError otherwise."""
  if name not in NAMES:
    raise ValueError(
      f'Expected the `name` of an attack to be one of {", ".join(NAMES)}, got '
      f'{name!r}.'
    )
  return None if name == NONE else Attack(name=name, scale=scale)


def mark(
  data: dataset_lib.FederatedDataset,
  share: float,
  seed: int = 0,
  *,
  by_task: bool = True,
) -> dataset_lib.FederatedDataset:
  """Chooses the attackers, a share of every task's clients, rounded down.

  Clients are asked in an order that depends on the seed and their ids alone,
  and attack if none of their tasks has its share of attackers yet. So a client
  of several tasks attacks in all of them, and a task may then have fewer
  attackers than its share, never more.

  Args:
    data: On the host; its examples are not looked at.
    share: Of the clients of a task.
    seed: Of the order.
    by_task: Whether every task has its own attackers. If not, they are a share
      of all clients, whatever their tasks: the groups of common layers.

  Returns:
    The data set with the index `INDEX`.

  Raises:
    ValueError: If the share is none, or is less than one client of any group.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'Expected `share` between 0 and 1, got {share}.')
  partition, num_tasks = data.partition, data.num_tasks
  tasks, ids = np.asarray(partition.client_tasks), partition.client_ids
  if not by_task:
    is_padding = (tasks == num_tasks).all(axis=1, keepdims=True)
    tasks, num_tasks = is_padding.astype(np.int32), 1
  sizes = np.bincount(tasks.reshape(-1), minlength=num_tasks + 1)[:num_tasks]
  # With 0.2, two of ten: rounding of the product must not make it one.
  room = np.floor(share * sizes + 1e-6).astype(int)
  if share > 0 and not room.any():
    cure = '; set `by_task`=False to take it of all clients'
    raise ValueError(
      'Expected `share` to be one client of some task at least, got '
      f'{share} where the largest task has {sizes.max()}'
      f'{cure if by_task else ""}.'
    )
  key = jax.random.key(seed)
  bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(
    jnp.asarray(ids, jnp.uint32)
  )
  attackers = np.zeros(len(tasks), np.int32)
  for client in np.lexsort((np.asarray(ids), np.asarray(bits))):
    held = tasks[client][tasks[client] < num_tasks]
    if held.size and (room[held] > 0).all():
      attackers[client] = 1
      room[held] -= 1
  return dataclasses.replace(
    data,
    partition=dataclasses.replace(
      partition, owner_index=dict(partition.owner_index) | {INDEX: attackers}
    ),
  )


def is_attacker(client: cohorts.Cohort) -> jax.Array:
  """Whether clients attack: bool, `[]` or `[C]`.

  Raises:
    ValueError: If the data set has no marks.
  """
  if INDEX not in client.index:
    raise ValueError(
      'Expected a data set with marked attackers, got one without; use '
      'attacks.mark.'
    )
  return client.index[INDEX] > 0


def honest(data: dataset_lib.FederatedDataset) -> jax.Array | None:
  """`[M]` bool, honest clients; None for a data set without marks."""
  attackers = data.partition.owner_index.get(INDEX)
  return None if attackers is None else jnp.asarray(attackers) == 0


class _WrongLabels(client_batches.LocalData):
  """The training data of a client, with wrong labels if it attacks."""

  def batch(self, positions: jax.Array) -> examples_lib.Batch:
    """See `LocalData`."""
    batch = super().batch(positions)
    attacks = is_attacker(self.client)

    def choose(flags, wrong, right):
      flags = flags.reshape(flags.shape + (1,) * (right.ndim - flags.ndim))
      return jnp.where(flags, wrong, right)

    labels = batch.labels
    for wrong, flags in self._wrong(batch):
      chosen = batch.has_label
      if flags is not None:
        chosen &= flags[:, None]
      labels = jax.tree.map(
        functools.partial(choose, chosen & attacks), wrong, labels
      )
    return dataclasses.replace(batch, labels=labels)

  def _wrong(self, batch):
    """Wrong labels as each kind has them, and which slots `[S]` are of it."""
    tasks = self.data.tasks
    by_kind = tasks_lib.groups(tasks, lambda task: task.definition)
    for kind, flags in by_kind.items():
      assert kind.flip is not None
      of_tasks = np.array([t.num_classes for t in tasks], np.int32)
      classes = tasks_lib.of_task(of_tasks, batch.tasks)[:, None]
      wrong = kind.flip(batch.labels, classes)
      of_slot = None if flags.all() else tasks_lib.of_task(flags, batch.tasks)
      yield wrong, of_slot


def attacked(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  attack: Attack | None,
) -> client_updates.ClientUpdate:
  """The client update of a federation in which some clients attack.

  Args:
    federation: Says which layers are averaged.
    client_update: Of honest clients; attackers differ in the update that they
      send and, with `label_flip`, in their labels.
    attack: Of the attackers; None for no attack.

  Raises:
    ValueError: If a kind of task has no wrong labels.
  """
  if attack is None:
    return client_update
  for task in federation.tasks if attack.name == LABEL_FLIP else ():
    if task.definition.flip is None:
      raise ValueError(
        f'Expected tasks whose kind says what {LABEL_FLIP} makes of a label, '
        f'got {task.definition.name!r} of task {task.name!r}; give it a '
        'tasks.Kind.flip, or choose another attack.'
      )
  send = _SENT[attack.name]

  def run(context):
    if attack.name == LABEL_FLIP:
      context = context._replace(data=_WrongLabels(*context.data))
    result = client_update.run(context)
    attacks = is_attacker(context.data.client)

    def choose(label, sent, computed):
      if not federation.owners[label].averaged:
        return computed
      return jnp.where(attacks, sent, computed)

    sent = send(context.key, result.update, attack.scale)
    return result._replace(
      update=jax.tree.map(choose, federation.layer_types, sent, result.update)
    )

  return client_update._replace(run=run, sgd=None)

"""HeteroFL: each device trains as wide a part of the network as it can hold.

A client m of a class with the share f of the widths holds a slice of every
layer: the first ceil(f n) of n hidden units, all inputs and outputs. It trains
the slice, and the server averages each entry over those that hold it,

  w_j <- w_j + sum_{m: j in m} p_m D_mj / sum_{m: j in m} p_m,

for each layer type; an entry that nobody holds keeps its value. In training the
outputs of hidden layers are divided by f (the paper's scaler), so that they are
as large as those of the whole network; in predictions they are not. A client
predicts with the part that it holds. With all shares 1 it is FedAvg.

Classes are given for each client, or drawn: a client has one of them by its
own number and `class_seed`, whatever the seed of the run. Layers of tasks, and
those that clients own, are slices, too. Which axes are cut is derived, see
`federation.widths`.

Deviations: Running statistics of batch normalization are averaged as other
entries are, where the paper's are computed from all clients' data after
training (static batch normalization). The losses of classes that a client does
not have are not masked. p_m are numbers of examples by default (`uniform`:
equal).

References:
  Diao, Ding, Tarokh (2021), HeteroFL: computation and communication efficient
  federated learning for heterogeneous clients,
  https://arxiv.org/abs/2010.01264, Algorithm 1 (unchecked).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.cohorts import participation
from fmtl_jax.federation import widths
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators

Tree = Any

_FRACTIONS = 'to be numbers in (0, 1]'
_SHARES = 'to be a number >= 0 for each class'
_CLASSES = 'to be a class for each client'

label_rules = fedavg.label_rules


class DeviceClass(NamedTuple):
  """What the clients of a class hold.

  Attributes:
    fraction: The share of widths.
    share: Of the clients: how many are of this class, or are drawn for it.
    parameters: The values of one client's model.
    bytes_once: Bytes of the layers that it moves, one way.
    bytes_each_slot: Those it moves for each of its slots.
  """

  fraction: float
  share: float
  parameters: int
  bytes_once: int
  bytes_each_slot: int


class Devices:
  """The device classes of a federation's clients; holds no state."""

  def __init__(
    self,
    federation: federation_lib.Federation,
    fractions: Sequence[float],
    shares: Sequence[float],
    classes: Sequence[int],
    class_seed: int,
  ):
    """Derives what each class holds.

    Args:
      federation: Network, layer types and tasks.
      fractions: Of widths, by class.
      shares: Of clients by class, if classes are drawn; `()`: all alike.
      classes: The class of each client; `()` draws them.
      class_seed: Of the draw.

    Raises:
      ValueError: If they do not fit each other, or the network is no chain.
    """
    _check(federation, fractions, shares, classes)
    self._federation = federation
    self._fractions = tuple(float(f) for f in fractions)
    self._shares = _shares(fractions, shares, classes)
    self._classes, self._seed = tuple(classes), class_seed
    self._shapes = federation.shapes
    self._cuts = widths.derive(federation.shapes, federation.use_order)

  def fraction(self, client: cohorts.Cohort) -> jax.Array:
    """The share of widths of a client: a `Cohort` without the leading axis."""
    if self._classes:
      row, numbers = client.client, self._federation.client_numbers
      if numbers is not None:
        row = jnp.take(numbers, row, mode='clip')
      number = jnp.take(jnp.asarray(self._classes), row, mode='clip')
    else:
      key = random_bits.narrow(jax.random.key(self._seed))
      key = jax.random.fold_in(key, client.client_id)
      drawn = jax.random.uniform(key, dtype=jnp.float32)
      ends = np.cumsum(self._shares)[:-1].astype(np.float32)
      number = (drawn >= jnp.asarray(ends)).sum()
    return jnp.take(jnp.asarray(self._fractions, jnp.float32), number)

  def masks(self, fraction: jax.Array) -> Tree:
    """Whether a client of this share has an entry: of all leaves of a model."""
    return widths.masks(self._cuts, self._shapes, fraction)

  def held(self, view: Tree, fraction: jax.Array) -> Tree:
    """A client's view with zeros where it holds nothing."""
    return widths.held(self.masks(fraction), view)

  def narrow(self, fraction: jax.Array) -> federation_lib.Federation:
    """The federation whose training computes with the part, and scales it."""
    mask = self.masks(fraction)

    def part(params):
      def one(leaf, held, value):
        value = jnp.where(held, value, jnp.zeros((), value.dtype))
        return (
          (value / fraction).astype(value.dtype) if leaf.is_hidden else value
        )

      return jax.tree.map(one, self._cuts, mask, params)

    whole = self._federation
    train_fn = given = whole.train_fn
    if given is not None:
      train_fn = lambda params, *others: given(part(params), *others)
    return dataclasses.replace(
      whole,
      apply_fn=lambda params, x: whole.apply_fn(part(params), x),
      train_fn=train_fn,
    )

  def classes(self) -> tuple[DeviceClass, ...]:
    """What the clients of each class hold and move."""
    federation, found = self._federation, []
    for fraction, share in zip(self._fractions, self._shares, strict=True):
      shapes = widths.sliced(self._cuts, self._shapes, fraction)
      sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)]
      moved = [0, 0]
      for label, of_slot, leaf in zip(
        jax.tree.leaves(federation.labels),
        jax.tree.leaves(federation.per_slot),
        jax.tree.leaves(shapes),
        strict=True,
      ):
        owner = federation.owners.get(label)
        if owner is not None and owner.averaged:
          size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
          moved[int(of_slot)] += size
      found.append(DeviceClass(fraction, share, sum(sizes), *moved))
    return tuple(found)

  def costs(self, client: cohorts.Cohort) -> tuple[jax.Array, jax.Array]:
    """What a client moves, against the mean, and how long its steps take."""
    fraction = self.fraction(client)
    found = self.classes()
    moved = [x.bytes_once + x.bytes_each_slot for x in found]
    mean = max(float(np.dot(self._shares, moved)), 1.0)
    whole = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self._shapes))
    number = jnp.argmin(jnp.abs(jnp.asarray(self._fractions) - fraction))
    table = lambda values: jnp.asarray(values, jnp.float32)[number]
    return (
      table([x / mean for x in moved]),
      table([x.parameters / whole for x in found]),
    )

  def message(self, message: Tree) -> Tree:
    """The shapes of what a client moves, the mean over clients."""
    slices = [
      widths.sliced(self._cuts, self._shapes, f) for f in self._fractions
    ]

    def one(leaf, whole, *parts):
      if leaf is None:
        return None
      sizes = [np.prod(part.shape) for part in parts]
      mean = float(np.dot(self._shares, sizes))
      slots = leaf.shape[: len(leaf.shape) - len(whole.shape)]
      return jax.ShapeDtypeStruct((*slots, round(mean)), leaf.dtype)

    return jax.tree.map(
      one, message, self._shapes, *slices, is_leaf=lambda x: x is None
    )

  def check_slices(self, features: Tree) -> None:
    """Raises a ValueError unless the network takes its slices.

    Args:
      features: Shapes of a batch.
    """
    shapes = widths.sliced(self._cuts, self._shapes, min(self._fractions))
    try:
      jax.eval_shape(self._federation.apply_fn, shapes, features)
    except Exception as error:  # Whatever a network of the user's raises.
      raise ValueError(
        'Expected a network for device classes that computes with slices of '
        f'its layers, as a narrower one, it does not: {error}'
      ) from error


def _check(federation, fractions, shares, classes):
  """Raises a ValueError for classes that do not fit each other."""
  is_share = lambda x: isinstance(x, (int, float)) and 0 < x <= 1
  if not fractions or not all(map(is_share, fractions)):
    raise ValueError(
      f'Expected `fractions` {_FRACTIONS}, got {fractions!r}, which are the '
      'shares of widths of device classes.'
    )
  is_weight = lambda x: isinstance(x, (int, float)) and x >= 0
  if shares and (
    len(shares) != len(fractions)
    or not all(map(is_weight, shares))
    or not sum(shares)
  ):
    raise ValueError(
      f'Expected `shares` {_SHARES}, got {shares!r}; there are '
      f'{len(fractions)} classes, and one needs more than 0.'
    )
  if not classes:
    return
  count = federation.num_owners['client']
  is_class = lambda x: isinstance(x, int) and 0 <= x < len(fractions)
  is_whole = federation.client_numbers is None  # Else it is a part of one.
  if not all(map(is_class, classes)) or is_whole and len(classes) != count:
    raise ValueError(
      f'Expected `classes` {_CLASSES}, got {classes!r}; there are {count} '
      f'clients and {len(fractions)} classes, numbered from 0.'
    )


def _shares(fractions, shares, classes):
  """The shares of clients by class, of a sum of 1."""
  if classes:
    counts = np.bincount(classes, minlength=len(fractions))
    return tuple((counts / len(classes)).tolist())
  given = np.asarray(shares or [1.0] * len(fractions), np.float64)
  return tuple((given / given.sum()).tolist())


def entrywise_mean(devices: Devices) -> aggregators.Aggregator:
  """The weighted mean of each entry over those that hold it."""
  plain = aggregators.mean()

  def held(updates, clients):
    every = jax.vmap(lambda x: devices.masks(devices.fraction(x)))(
      clients.cohort
    )
    slots = (1,) * (clients.weights.ndim - 1)

    def one(leaf, mask):
      if leaf is None:
        return None
      mask = mask.reshape(mask.shape[:1] + slots + mask.shape[1:])
      return jnp.broadcast_to(mask, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(one, updates, every, is_leaf=lambda x: x is None)

  def init(params, num_owners):
    return plain.init(params, num_owners), plain.init(params, num_owners)

  def add(total, updates, clients, params):
    sums, counts = total
    return (
      plain.add(sums, updates, clients, params),
      plain.add(counts, held(updates, clients), clients, params),
    )

  def finish(unused_key, total, unused_updates, unused_clients):
    return jax.tree.map(lambda x, n: x / jnp.where(n > 0, n, 1), *total)

  return aggregators.Aggregator(init, add, finish)


def _client_update(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd,
  devices: Devices,
) -> client_updates.ClientUpdate:
  """Local SGD of the part that a client holds."""
  plain = training.local_sgd(federation, local)

  def run(context):
    fraction = devices.fraction(context.data.client)
    part = training.local_sgd(devices.narrow(fraction), local)
    view = devices.held(context.view, fraction)
    result = part.run(context._replace(view=view))
    return result._replace(update=devices.held(result.update, fraction))

  return plain._replace(run=run, sgd=None)


def heterofl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  fractions: Sequence[float] = (1.0, 0.5, 0.25),
  shares: Sequence[float] = (),
  classes: Sequence[int] = (),
  class_seed: int = 0,
) -> algorithm_lib.Algorithm:
  """Builds HeteroFL, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round, without aggregators and codecs.
    fractions: The share of widths of each device class.
    shares: Of the clients, those that are drawn for each class; `()`: equal.
    classes: The class of each client, by number; `()` draws them.
    class_seed: Of the draw.

  Raises:
    ValueError: If classes do not fit, the network is no chain of layers, or
      updates are aggregated or compressed in another way.
  """
  local.refuse_privacy(SPEC.name)
  SPEC.check(
    fractions=fractions, shares=shares, classes=classes, class_seed=class_seed
  )
  round_settings.check_without(
    settings,
    ('reducer', 'compression', 'broadcast', 'secure', 'privacy'),
    'heterofl',
    'whose clients send slices, which are averaged entry by entry',
  )
  devices = Devices(federation, fractions, shares, classes, class_seed)
  reducer = {
    name: entrywise_mean(devices)
    for name, owner in federation.owners.items()
    if owner.averaged
  }
  settings = dataclasses.replace(
    settings,
    reducer=reducer,
    participation=participation.relative_to(
      settings.participation, devices.costs
    ),
  )
  plain = federated_averaging.federated_averaging(
    federation, _client_update(federation, local, devices), settings
  )

  def init(key, data):
    devices.check_slices(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
        data.examples.features,
      )
    )
    return plain.init(key, data)

  def view(state, data, client, frozen):
    whole = plain.view(state, data, client, frozen)
    return devices.held(whole, devices.fraction(client))

  def messages():
    up, down, all_copies = plain.messages()
    return algorithm_lib.Messages(
      tuple(map(devices.message, up)),
      tuple(map(devices.message, down)),
      all_copies,
    )

  return plain._replace(
    init=init,
    view=view,
    messages=messages,
    personal=True,
    remote=(
      'whose devices get the parts of layers that they can hold, which are cut '
      'out of whole layers where they are trained'
    ),
  )


SPEC = specs.Spec(
  name='heterofl',
  label='HeteroFL',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2021,
  build=heterofl,
  label_rules=label_rules,
  settings={
    'fractions': specs.Setting(
      help='The share of widths of each device class.',
      says=_FRACTIONS,
      examples=((1.0, 0.5, 0.25), (1.0, 0.5)),
    ),
    'shares': specs.Setting(
      help='Of clients, those drawn for each class; (): all classes alike.',
      says=_SHARES,
      examples=((), (0.0, 0.0, 1.0)),
    ),
    'classes': specs.Setting(
      help='The class of each client, by number from 0; (): drawn.',
      says=_CLASSES,
      examples=((), (2, 2, 2, 2)),
    ),
    'class_seed': specs.Setting(
      help='Of the draw of classes.', least=0, examples=(0, 1)
    ),
  },
  adapt=specs.all_layers,
  degenerate=(specs.Degenerate('is fedavg', {'fractions': (1.0,)}),),
)

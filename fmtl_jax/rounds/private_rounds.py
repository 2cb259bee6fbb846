"""Private rounds: clipping, sums with noise, and an adaptive clipping norm.

Neighbouring federations differ by one client. What leaves it is clipped as one
vector, the sums of owners get noise, and are divided by numbers that no client
changes: all that servers do behind it costs nothing more. Every owner gets
noise, and every server steps, in every round, whoever reported. What cannot be
bounded so is refused (`check`).

Losses and other metrics of a round are not a part of it: a simulation has them
for those who experiment. A release of the state's parameters is private, one of
metrics is not; validation that chooses a round or a setting is not charged.

References:
  McMahan et al. (2018), Learning differentially private recurrent language
  models, https://arxiv.org/abs/1710.06963, Algorithm 1; Andrew et al. (2021),
  Differentially private learning with adaptive clipping,
  https://arxiv.org/abs/1905.03871, Algorithm 1.
"""

from collections.abc import Mapping
import math
from typing import Any, NoReturn
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import clipping
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers
from fmtl_jax.privacy import noise_keys
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import secure_sums
from fmtl_jax.server import aggregators
from fmtl_jax.server import private_aggregators
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers
from fmtl_jax.server import weights as weights_lib

Tree = Any

_KEY = np.uint32(zlib.crc32(b'privacy'))
_COUNT = np.uint32(zlib.crc32(b'count of clients below the norm'))


class PrivateRounds:
  """What private rounds add; nothing without `RoundSettings.privacy`.

  Attributes:
    caps: The most clients of each group in a Poisson cohort; None for others.
    groups: What is public of the task groups.
  """

  caps: tuple[int, ...] | None = None

  def __init__(
    self,
    federation: federation_lib.Federation,
    settings: round_settings.RoundSettings,
  ):
    """Reads rates and sizes of groups, and nothing else of the data.

    Raises:
      ValueError: If K exceeds a task group, or caps or norms do not fit.
    """
    self._federation, self._settings = federation, settings
    self._privacy: Any = settings.privacy
    present = sorted(set(jax.tree.leaves(federation.layer_types)))
    self._averaged = [n for n in present if federation.owners[n].averaged]
    if self._privacy is None:
      return
    names = [task.name for task in federation.tasks]
    counts = cohorts.check_clients_per_task(
      settings.clients_per_task, federation.group_sizes, names
    )
    self.groups = ledgers.Groups(
      names=names,
      sizes=federation.group_sizes,
      clients_per_task=counts,
      num_slots=federation.num_slots,
    )
    self.caps = ledgers.caps(self._privacy, self.groups)
    self._norms = clipping.norms(self._privacy, self._averaged)
    self._multiplier = self._privacy.noise_multiplier
    self._count_noise = 0.0
    if self._privacy.adaptive is not None:
      self._set_adaptive(self._privacy.adaptive)

  def _set_adaptive(self, adaptive):
    """Splits the noise between the updates and the count of those clipped."""
    if isinstance(self._privacy.clipping_norm, Mapping):
      raise ValueError(
        'Expected one `clipping_norm` with `adaptive`, got one for each layer '
        'type; set one number, or no `adaptive`.'
      )
    if self._privacy.noise == privacy_settings.LOCAL:
      raise ValueError(
        "Expected `noise`='central' with `adaptive`, which counts clients at a "
        "trusted server, got 'local'; set one of them."
      )
    expected = self._expected('')[0]
    count_noise = adaptive.count_noise or expected / 20
    if self._multiplier:
      self._multiplier = accounting.update_noise(self._multiplier, count_noise)
      self._count_noise = count_noise

  def _expected(self, name: str) -> tuple[float, ...]:
    """The expected weights of owners of a layer type, '' for one copy.

    Where clients hold several tasks, they are bounds by public numbers.
    """
    counts, sizes = self.groups.clients_per_task, self.groups.sizes
    slots = self._federation.num_slots
    several = accounting.union_rate(
      sorted(self.groups.rates, reverse=True)[:slots]
    )
    if name and self._federation.owners[name].index == 'task':
      if self._settings.slots == cohorts.ALL and slots > 1:
        return tuple(size * several for size in sizes)
      return tuple(float(count) for count in counts)
    num_clients = self._federation.num_owners['client']
    total = float(sum(counts))
    return (min(total, num_clients * several) if slots > 1 else total,)

  def check(
    self,
    client_update: client_updates.ClientUpdate,
    rule: server_optimizers.ServerRule,
    *,
    compares: bool,
  ) -> None:
    """Raises a ValueError for what cannot be bounded.

    Args:
      client_update: Of the algorithm.
      rule: The algorithm's.
      compares: Whether clients get owners by their data or by their updates.
    """
    if self._privacy is None:
      return
    federation, settings = self._federation, self._settings
    if federation.client_numbers is not None:
      raise ValueError(
        'Expected clients on the device with `privacy`, got clients on the '
        'host, whose cohorts have a fixed size; keep them on the device.'
      )
    if compares:
      _refuse(
        'an algorithm that gives clients other clusters',
        'because their choices leave them and are not bounded',
        'choose another algorithm',
      )
    if client_update.mirrors:
      _refuse(
        'an algorithm whose server adds up the updates that its clients keep a '
        'sum of, too',
        'because clipping would let both sums drift apart',
        'choose another algorithm',
      )
    if rule.accumulates:
      _refuse(
        "an algorithm whose server's memory is a mean over all clients",
        'because its weights depend on who took part',
        'choose another algorithm',
      )
    if self._report(client_update) != ():
      _refuse(
        'an algorithm whose clients send more than an update',
        'which is not clipped',
        'choose another algorithm',
      )
    for name in self._averaged:
      index = federation.owners[name].index
      if index not in (None, 'task'):
        _refuse(
          f'{name} layers with a copy for each {index}',
          'because sums over so few clients would be noise, and who has which '
          'copy is not public',
          'use layers with one copy, or one for each task',
        )
      self._check_weighting(name)
      if settings.reducer.get(name) is not None:
        _refuse(
          f"`reducer['{name}']`",
          'because only a sum has a bound that is known',
          'set none',
        )
    statistics = federation.running_statistics(federation.layer_types)
    if set(jax.tree.leaves(statistics)) & set(self._averaged):
      _refuse(
        'running statistics that are averaged',
        'because noise may make variances negative',
        'let clients own them, as FedBN does, or use a network without',
      )
    if settings.balancing.server or settings.balancing.group:
      _refuse(
        '`balancing` at the server or in a group',
        'because losses and single updates are not bounded',
        'balance inside clients, or nowhere',
      )
    if settings.placement.task_axis is not None:
      _refuse(
        '`task_axis`',
        'because the noise of an owner would depend on its device',
        'spread clients instead',
      )
    if min(self.groups.sizes) < 2:
      name = self.groups.names[int(np.argmin(self.groups.sizes))]
      _refuse(
        f'a task group of one client ({name!r})',
        'because its sum is what that client sent',
        'leave this task out, or its layers with their clients',
      )

  def _check_weighting(self, name):
    """Weights must not depend on data."""
    weighting = self._settings.weighting.get(name, weights_lib.UNIFORM)
    if weighting != weights_lib.UNIFORM:
      raise ValueError(
        f"Expected `weighting['{name}']`='uniform' with `privacy`, because "
        f'other weights have no bound, got {weighting!r}; set it so.'
      )

  def _report(self, client_update):
    """The shapes of what messages hold beside the update."""
    federation = self._federation
    params = jax.eval_shape(federation.init_params, jax.random.key(0))
    view = jax.eval_shape(
      federation.broadcast, params, federation.index_shapes()
    )
    return jax.eval_shape(client_update.report, view)

  def aggregators(self) -> dict[str, aggregators.Aggregator]:
    """Those of the layer types that are averaged, none without privacy."""
    if self._privacy is None:
      return {}
    central = self._privacy.noise == privacy_settings.CENTRAL
    adaptive = self._privacy.adaptive is not None
    bounds = dict.fromkeys(self._averaged, 1.0) if adaptive else self._norms
    sums: dict[str, aggregators.Aggregator] = {}
    if self._settings.secure is not None:
      sums, bounds = self._secure_sums(bounds, central)

    def deviation(name):
      independent = central and self._multiplier and not self._is_banded
      return self._multiplier * bounds[name] if independent else 0.0

    return {
      name: private_aggregators.gaussian(
        name, deviation(name), self._expected(name), sums.get(name)
      )
      for name in self._averaged
    }

  def _secure_sums(self, bounds, central):
    """Aggregators by layer type, and the norms of what they add up."""
    found = {}
    for name in self._averaged:
      has_bound = central and math.isfinite(bounds[name])
      bound = bounds[name] if has_bound else None
      found[name] = secure_sums.private(
        self._federation, self._settings, name, bound
      )
    roundings = {name: rounding for name, (_, rounding) in found.items()}
    if not isinstance(self._privacy.clipping_norm, Mapping):  # Of the whole.
      whole = math.hypot(*roundings.values())
      roundings = dict.fromkeys(roundings, whole)
    longer = {name: norm + roundings[name] for name, norm in bounds.items()}
    return {name: sums for name, (sums, _) in found.items()}, longer

  @property
  def _is_banded(self):
    """Whether there is noise, and that of several rounds is related."""
    return bool(self._multiplier) and self._privacy.bands > 1

  def cycle(self, round_number: jax.Array) -> cohorts.Cycle | None:
    """Whose turn it is in a round; None where all may take part."""
    if self._privacy is None or self._privacy.bands == 1:
      return None
    return cohorts.Cycle(round_number, self._privacy.bands)

  def init(self, key: jax.Array, params: Tree) -> Tree:
    """The state before the first round, `()` without a key of noise.

    Args:
      key: Of the run, not consumed. Without a seed of the settings, words of
        the operating system are folded into that of noise.
      params: `[owners, ...]`.
    """
    key = jax.random.fold_in(key, _KEY)
    if self._privacy is None:
      if not self._settings.noise_key:
        return ()
      return clipping.State(noise_keys.fold_system(key))
    if self._privacy.seed is None:
      key = noise_keys.fold_system(key)
    else:
      key = jax.random.fold_in(key, np.uint32(self._privacy.seed))
    norm = None
    if self._privacy.adaptive is not None:
      norm = jnp.float32(self._privacy.clipping_norm)
    noise = None
    if self._is_banded:
      rounds = self._privacy.bands - 1
      zeros = lambda x: jnp.zeros((rounds, *x.shape), x.dtype)
      noise = {
        name: jax.tree.map(zeros, self._federation.of_type(name, params))
        for name in self._averaged
      }
      noise = self._next_noise(noise, jax.random.fold_in(key, 0))
    return clipping.State(key, norm, noise)

  def _next_noise(self, past, key):
    """The noises of rounds with that of the one whose key is given."""
    banded: Any = self._privacy.banded

    def one(name, old):
      newest = jax.tree.map(lambda x: x[0], old)
      fresh = private_aggregators.standard_noise(key, name, newest)
      return private_aggregators.banded_noise(banded.coefficients, old, fresh)

    return {name: one(name, old) for name, old in past.items()}

  def clipped(
    self, client_update: client_updates.ClientUpdate
  ) -> client_updates.ClientUpdate:
    """The client update whose message is clipped."""
    if self._privacy is None:
      return client_update
    return clipping.clipped(self._federation, client_update, self._privacy)

  def noise_key(
    self, state: federation_lib.FederationState, key: jax.Array
  ) -> jax.Array:
    """The key of the noise of a round; `key` without privacy."""
    if self._privacy is None:
      return key
    return jax.random.fold_in(state.privacy.key, state.round)

  def released(
    self, aggregates: dict[str, servers.Aggregate], state: Tree
  ) -> dict[str, servers.Aggregate]:
    """Aggregates that say nothing about who reported.

    Args:
      aggregates: As of `Aggregation.means`.
      state: As of `init`.
    """
    if self._privacy is None:
      return aggregates

    def one(name, aggregate):
      update, weight = aggregate.update, jnp.array(self._expected(name))
      if state.noise is not None:
        update = self._with_noise(name, update, state.noise[name])
      if state.clipping_norm is not None:
        update = jax.tree.map(
          lambda x: x * state.clipping_norm.astype(x.dtype), update
        )
      shape = aggregate.share.shape
      return aggregate._replace(
        update=update,
        share=jnp.ones_like(aggregate.share),
        weight=weight.reshape(shape).astype(jnp.float32),
      )

    return {name: one(name, found) for name, found in aggregates.items()}

  def _with_noise(self, name, update, noise):
    """A mean with the newest noise of its sum."""
    deviation = self._multiplier * self._norms[name]
    weights = jnp.array(self._expected(name), jnp.float32)
    if self._federation.owners[name].index is None:
      weights = weights[0]
    newest = jax.tree.map(
      lambda x: jnp.asarray(deviation, x.dtype) * x[0], noise
    )
    return jax.tree.map(jnp.add, update, aggregators.divide(newest, weights))

  def step(
    self,
    state: federation_lib.FederationState,
    cohort: cohorts.Cohort,
    metrics: Mapping[str, jax.Array],
  ) -> Tree:
    """The state after a round: what its norm and its noise are next.

    Args:
      state: Of the federation, before the round.
      cohort: C clients.
      metrics: Theirs.
    """
    old = state.privacy
    if old != () and old.noise is not None:
      key = jax.random.fold_in(old.key, state.round + 1)
      return old._replace(noise=self._next_noise(old.noise, key))
    if old == () or old.clipping_norm is None:
      return old
    adaptive = self._privacy.adaptive
    expected = self._expected('')[0]
    # Those that send nothing are below any norm; who drops out is not counted.
    there = cohort.size > 0
    total = jnp.where(there, metrics[clipping.BELOW] - 0.5, 0).sum()
    key = jax.random.fold_in(self.noise_key(state, state.key), _COUNT)
    noise = jax.random.normal(random_bits.narrow(key), (), jnp.float32)
    share = 0.5 + (total + self._count_noise * noise) / expected
    rate = adaptive.learning_rate
    step = jnp.exp(-rate * (share - adaptive.quantile))
    return old._replace(clipping_norm=old.clipping_norm * step)


def _refuse(what: str, why: str, cure: str) -> NoReturn:
  """Raises a ValueError."""
  raise ValueError(
    f'Expected `privacy` without {what}, {why}, got both; {cure}.'
  )

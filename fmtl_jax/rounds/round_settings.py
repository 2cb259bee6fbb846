"""Settings of a round: what changes its results, apart from its placement."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from fmtl_jax import balancing as balancing_lib
from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import attacks
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import compressing
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.secure_aggregation import settings as secure_lib
from fmtl_jax.server import aggregators
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers
from fmtl_jax.server import weights as weights_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Where and in which execution mode the clients of a round are trained.

  Attributes:
    execution: An execution mode; `auto` is the fastest as far as known.
    memory_budget: Bytes that clients which run at once may take on a device,
      for `chunk` and `low_rank`; by default `execution.memory_budget`.
    low_rank_below: With `auto` and `low_rank`, dense kernels whose rows are
      below this share of their size are trained in factored form, whatever that
      takes; by default those that are faster by `execution.costs`, by which
      `auto` also chooses how many clients run at once.
    ceilings: Of the device, for these costs; by default those of one that was
      measured, see `execution.ceilings`.
    client_axis: The mesh axis over which clients are spread, where rounds run
      inside `jax.shard_map`, as by `execution.over_devices`.
    task_axis: The mesh axis over which tasks are spread, with states as of
      `task_devices.own_tasks`.
  """

  execution: str = execution_lib.AUTO
  memory_budget: int | None = None
  low_rank_below: float | None = None
  ceilings: execution_lib.Ceilings | None = None
  client_axis: str | None = None
  task_axis: str | None = None

  def __post_init__(self):
    if self.execution != execution_lib.AUTO:
      execution_lib.resolve(self.execution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSettings:
  """Settings of a round that change its results, whatever the clients do in it.

  `placement` alone changes no result beyond rounding.

  Attributes:
    clients_per_task: K, one number or one for each task; 0 is all.
    slots: `drawn` or `all`, see `cohorts.sample`.
    weighting: Of each averaged layer type, see `weights`; by default
      `examples`.
    reducer: The robust aggregator of each averaged layer type: a function of
      one owner's updates, or an `aggregators.Aggregator`; the weighted mean by
      default.
    reduce_within_tasks: Whether robust aggregators of layers with a single copy
      act on the clients of each task, see `robust_aggregators.within_tasks`.
    server: Of each averaged layer type: an optimizer that steps for each owner,
      or a `servers.Server` over all of them; by default the mean replaces the
      value.
    attack: Of the attackers of the data set; None for no attack.
    compression: The codec of the updates of each averaged layer type; by
      default they are sent as they are.
    broadcast: The codec of what servers send of each averaged layer type, see
      `encoding`; by default it is sent as it is.
    secure: The bounds and thresholds of secure sums, see `secure_sums`; None
      for a server that sees what each client sends.
    balancing: Where gradients or updates of several tasks or clients are
      balanced; nowhere by default.
    participation: Dropouts, stragglers and partial work; None for full
      participation.
    skip_nonfinite: Whether a client whose loss, update or state is not finite
      is excluded from the round: nothing is averaged of it, and its state and
      the layers that it owns stay unchanged. The weights of the others are
      those that they have with it.
    privacy: Clipping and noise of what clients send, and how they are drawn,
      see `private_rounds`: weights are `uniform` then. None for none.
    noise_key: Whether the state has a key of noise of the operating system, as
      private examples without a seed need.
    matmul_precision: Of all matrix products of rounds and of models that they
      train, one of `precision.MATMUL`; None for JAX's own setting.
    placement: Where and in which execution mode clients are trained.
  """

  clients_per_task: int | Sequence[int] = 0
  slots: str = cohorts.DRAWN
  weighting: Mapping[str, str] = dataclasses.field(default_factory=dict)
  reducer: Mapping[
    str, robust_aggregators.RobustAggregator | aggregators.Aggregator
  ] = dataclasses.field(default_factory=dict)
  reduce_within_tasks: bool = False
  server: Mapping[str, server_optimizers.ServerOptimizer | servers.Server] = (
    dataclasses.field(default_factory=dict)
  )
  attack: attacks.Attack | None = None
  compression: compressing.Codecs = dataclasses.field(default_factory=dict)
  broadcast: compressing.Codecs = dataclasses.field(default_factory=dict)
  secure: secure_lib.SecureSums | None = None
  balancing: balancing_lib.Places = balancing_lib.Places()
  participation: participation_lib.Participation | None = None
  skip_nonfinite: bool = False
  privacy: privacy_settings.ClientPrivacy | None = None
  noise_key: bool = False
  matmul_precision: str | None = precision.HIGHEST
  placement: Placement = Placement()

  def __post_init__(self):
    if self.slots not in (cohorts.DRAWN, cohorts.ALL):
      raise ValueError(
        f"Expected `slots` to be 'drawn' or 'all', got {self.slots!r}."
      )
    self._check_compression()
    for layer_type, weighting in self.weighting.items():
      weights_lib.check(weighting, f"`weighting['{layer_type}']`")
    if self.matmul_precision is not None:
      precision.check(
        'matmul_precision', self.matmul_precision, precision.MATMUL
      )

  def _check_compression(self):
    """Raises a ValueError for a codec where it would be wrong."""
    for layer_type, codec in self.broadcast.items():
      if not codec.contracts:
        raise ValueError(
          f"Expected `broadcast['{layer_type}']` to lose less than it is "
          'given, or clients never get what the server has, got '
          f'{codec.name} with too few bits; take eden, or qsgd with 6 or more.'
        )
    for layer_type, codec in self.compression.items():
      compared = {
        f"`reducer['{layer_type}']`": self.reducer.get(layer_type),
        '`balancing.group`': self.balancing.group,
        '`balancing.server`': self.balancing.server,
      }
      for argument, value in compared.items():
        if value is not None and not codec.unbiased:
          raise ValueError(
            f"Expected `compression['{layer_type}']` to be unbiased with "
            f'{argument}, which compares what clients send in a round, got '
            f'{codec.name}, whose errors cancel over rounds only; take eden or '
            'qsgd.'
          )

  def local_data(
    self,
    state: federation_lib.FederationState,
    data: dataset_lib.FederatedDataset,
    client: Any,
  ) -> client_batches.LocalData:
    """The data that a client trains on, with the balancing of its tasks.

    Args:
      state: What the round starts from.
      data: The federation's data.
      client: A `Cohort` without the leading axis.
    """
    memory = cohorts.take(state.balancing.client, client.client)
    return client_batches.LocalData(data, client, self.balancing.client, memory)


def check_without(
  settings: RoundSettings, arguments: Sequence[str], whose: str, because: str
) -> None:
  """Raises a ValueError if one of some settings is set.

  Args:
    settings: Of the round.
    arguments: Names of settings.
    whose: What cannot be had with them, for the error, such as `heterofl`.
    because: Why, for the error, such as `whose server ...`.
  """
  for argument in arguments:
    value = getattr(settings, argument)
    if not isinstance(value, Mapping):
      asked = '' if value is None else f'`{argument}`'
    else:
      given = [name for name, each in value.items() if each is not None]
      asked = f"`{argument}['{given[0]}']`" if given else ''
    if asked:
      raise ValueError(
        f'Expected {asked} to be left out with {whose}, {because}.'
      )


def check_unscaled(
  settings: RoundSettings, layer_type: str, algorithm: str, because: str
) -> None:
  """Raises a ValueError unless a server applies updates as they are.

  Args:
    settings: Of the round.
    layer_type: That of the server.
    algorithm: Its name, for the error.
    because: Why, for the error, such as `whose server ...`.
  """
  default = server_optimizers.ServerOptimizer()
  server = settings.server.get(layer_type, default)
  rate = getattr(server, 'learning_rate', None)
  is_one = isinstance(rate, (int, float)) and rate == 1
  if not server_optimizers.is_plain(server) or not is_one:
    raise ValueError(
      f"Expected `server['{layer_type}'].optimizer` to be SGD without momentum "
      f"and `server['{layer_type}'].learning_rate`=1 with {algorithm}, "
      f'{because}, got {server!r}; set them so.'
    )
  if settings.weighting.get(layer_type) == weights_lib.PAPER:
    raise ValueError(
      f"Expected `weighting['{layer_type}']` other than 'paper' with "
      f'{algorithm}, {because}, because these weights do not add up to one; '
      "set 'examples'."
    )

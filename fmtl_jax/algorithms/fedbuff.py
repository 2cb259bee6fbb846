"""FedBuff: the server steps when K updates have arrived, however old they are.

M clients are at work at any time, each as long as it needs. When one is done,
another one starts from the newest model, and its update D_i waits in a buffer.
When there are K of them, with the server's rate gamma,

  w <- w + gamma sum_i p_i (1 + tau_i)^{-a} D_i / sum_i p_i,

where tau_i counts the steps of the server since client i started, in which the
copy w has moved, and p_i is its weight, for each layer type. A round is a step
of the server; time is that of `participation`'s clock. With K = M and clients
that need the same time it is FedAvg. Layers of tasks and personal ones are as
in any federated averaging: a client works on all of its tasks, and its own
layers move in the step that its update enters.

Deviations: The paper has one model, which every step moves; a task's layers
count the steps in which clients of the task take part. p_i are numbers of
examples by default; the paper's are equal (`uniform`). K is half of M by
default (10 in the paper). A client is not started again before the step that
its update enters.

References:
  Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba (2022), Federated
  learning with buffered asynchronous aggregation,
  https://arxiv.org/abs/2106.06639, Algorithm 1 (unchecked).
"""

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import buffered
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules


def fedbuff(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  concurrency: int = 0,
  buffer: int = 0,
  staleness_exponent: float = 0.5,
) -> algorithm_lib.Algorithm:
  """Builds FedBuff, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; of its participation, the clock.
    concurrency: M, the clients at work; 0 for as many as a synchronous round
      has.
    buffer: K, the updates of a step; 0 for half of M.
    staleness_exponent: a; may be traced.

  Raises:
    ValueError: If a buffer would never be full, or settings of the round mean
      nothing without rounds.
  """
  local.refuse_privacy(SPEC.name)
  SPEC.check(
    concurrency=concurrency,
    buffer=buffer,
    staleness_exponent=staleness_exponent,
  )
  return asynchronous(
    federation,
    local,
    settings,
    concurrency,
    buffer,
    staleness_exponent,
    by_task=False,
  )


def asynchronous(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd,
  settings: round_settings.RoundSettings,
  concurrency: int,
  buffer: int,
  staleness_exponent: float,
  *,
  by_task: bool,
) -> algorithm_lib.Algorithm:
  """Builds local SGD in buffered rounds, see `buffered`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
    concurrency: Clients at work of each buffer; 0 for those of a round.
    buffer: K; 0 for half of those.
    staleness_exponent: a.
    by_task: Whether each task has a buffer.
  """
  at_work, size = _sizes(
    federation, settings, concurrency, buffer, by_task=by_task
  )
  update = training.local_sgd(federation, local)._replace(sgd=None)
  init, round_fn = buffered.buffered(
    federation,
    update,
    local,
    settings,
    buffered.Buffering(
      concurrency=at_work,
      buffer=size,
      exponent=staleness_exponent,
      by_task=by_task,
    ),
  )
  synchronous = federated_averaging.federated_averaging(
    federation, update, settings
  )
  return synchronous._replace(init=init, round=round_fn)


def _sizes(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  concurrency: int,
  buffer: int,
  *,
  by_task: bool,
) -> tuple[tuple[int, ...], int]:
  """The clients at work of each buffer, and the updates that fill one.

  Args:
    federation: Says how many clients there are.
    settings: Of the round; says how many clients a synchronous round has.
    concurrency: Of each buffer; 0 for those of a synchronous round.
    buffer: K; 0 for half of those at work, of the buffer with the fewest.
    by_task: Whether each task has a buffer.

  Raises:
    ValueError: If a buffer would never be full.
  """
  groups = federation.group_sizes
  counts = cohorts.check_clients_per_task(
    settings.clients_per_task, groups, [task.name for task in federation.tasks]
  )
  # A client in several groups counts in each: there are as many at least.
  there = -(-sum(groups) // federation.num_slots)
  at_work = counts if by_task else (min(sum(counts), there),)
  if concurrency:
    at_work = (concurrency,) * len(at_work)
  most = min(groups) if by_task else there
  size = buffer or max(1, min(min(at_work), most) // 2)
  whose = 'of the smallest task group' if by_task else 'that there surely are'
  if size > most:
    raise ValueError(
      f'Expected `buffer` <= {most}, the clients {whose}, because a client is '
      f'in a buffer once, got {size}.'
    )
  waiting = len(groups) * (size - 1)
  if by_task and federation.num_slots > 1 and waiting >= max(groups):
    raise ValueError(
      'Expected `buffer` such that the updates that wait for others, at most '
      f'{waiting}, are fewer than the clients of the largest task group, '
      f'{max(groups)}, or no client would be left to start, got {size}; take '
      'a smaller one.'
    )
  return at_work, size


SETTINGS = {
  'concurrency': specs.Setting(
    help='M: clients at work at once; 0: as many as a synchronous round has.',
    least=0,
    examples=(0, 2),
  ),
  'buffer': specs.Setting(
    help='K: updates of a step of the server; 0: half of M.',
    least=0,
    examples=(0, 1),
  ),
  'staleness_exponent': specs.Setting(
    help='a: an update counts (1 + staleness)^-a.',
    least=0,
    examples=(0.5, 3.0),
  ),
}
SPEC = specs.Spec(
  name='fedbuff',
  label='FedBuff',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2022,
  build=fedbuff,
  label_rules=label_rules,
  settings=SETTINGS,
)

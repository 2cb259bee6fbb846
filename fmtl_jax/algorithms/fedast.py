"""FedAST: several tasks are trained at once, with a buffer for each.

As FedBuff, but M clients are at work for each task t, on that task alone, and
their updates wait in a buffer of the task. The server steps when the buffer of
any task is full: the layers of the task by

  w_t <- w_t + gamma sum_i p_i (1 + tau_i)^{-a} D_i / sum_i p_i,

where tau_i counts the steps of task t since client i started. A task whose
clients are fast steps more often. A round is a step of the server, for one
task. A client that works for one task is not started for another one.

Deviations: Layers that tasks share, which the paper has none of, step with
every buffer; their staleness counts the steps of all tasks. p_i are numbers of
examples by default (`uniform`: equal). The clients of a task and the
sizes of buffers stay as they are. a is that of FedBuff.

References:
  Askin, Sharma, Joe-Wong, Joshi (2024), FedAST: federated asynchronous
  simultaneous training, https://arxiv.org/abs/2406.00302 (unchecked).
"""

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedbuff
from fmtl_jax.algorithms import separate_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = separate_fl.label_rules


def fedast(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  concurrency: int = 0,
  buffer: int = 0,
  staleness_exponent: float = 0.5,
) -> algorithm_lib.Algorithm:
  """Builds FedAST, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; of its participation, the clock.
    concurrency: M, the clients at work for each task; 0 for as many as a
      synchronous round has.
    buffer: K, the updates of a task's step; 0 for half of the smallest M.
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
  return fedbuff.asynchronous(
    federation,
    local,
    settings,
    concurrency,
    buffer,
    staleness_exponent,
    by_task=True,
  )


SPEC = specs.Spec(
  name='fedast',
  label='FedAST',
  doc=__doc__,
  family=specs.MULTI_TASK,
  year=2024,
  build=fedast,
  label_rules=label_rules,
  settings={
    'concurrency': specs.Setting(
      help='M: clients at work for each task; 0: those of a synchronous round.',
      least=0,
      examples=(0, 1),
    ),
    'buffer': specs.Setting(
      help="K: updates of a step of a task's layers; 0: half of M.",
      least=0,
      examples=(0, 2),
    ),
    'staleness_exponent': fedbuff.SETTINGS['staleness_exponent'],
  },
)

"""Fine-tuning: a client trains the server broadcast before it predicts.

Rounds are unchanged; the fine-tuned model is neither sent nor kept. Its
learning rate is by default the first value of the schedule: the last value of a
schedule, such as a cosine, is often 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

# Settings of algorithms whose clients fine-tune.
EPOCHS = specs.Setting(
  help='Epochs of fine-tuning before a client predicts.',
  least=0,
  examples=(1, 3),
)
LEARNING_RATE = specs.Setting(
  help='Of fine-tuning; 0 is that of the first round.',
  least=0,
  examples=(0.1, 0.3),
)


def finetuned(
  rounds: algorithm_lib.Algorithm,
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd,
  settings: round_settings.RoundSettings,
  learning_rate: float | jax.Array = 0.0,
) -> algorithm_lib.Algorithm:
  """Lets clients of an algorithm train on their own data before they predict.

  Args:
    rounds: The algorithm.
    federation: Network, layer types and tasks.
    local: Settings of fine-tuning: it starts afresh each time, from the view of
      `rounds`.
    settings: Of the rounds: how a client balances its tasks.
    learning_rate: Of fine-tuning; 0 is that of `local` in the first round. May
      be traced.
  """

  def schedule(round_number):
    of_rounds = local_optimizers.rate(local.learning_rate, round_number)
    return jnp.where(learning_rate > 0, learning_rate, of_rounds)

  own = isinstance(learning_rate, jax.Array) or learning_rate > 0
  if not own:
    local_optimizers.check_first_rate(
      local.learning_rate, 'give the learning rate of fine-tuning'
    )
  finetune = training.local_sgd(
    federation,
    dataclasses.replace(local, learning_rate=schedule) if own else local,
  )

  def view(state, data, client, frozen):
    received = rounds.view(state, data, client, frozen)
    key = jax.random.fold_in(state.key, state.round)
    context = client_updates.ClientContext(
      key=jax.random.fold_in(key, client.client_id),
      view=received,
      state=finetune.init(received),
      frozen=frozen,
      data=settings.local_data(state, data, client),
      round=local_optimizers.FIRST_ROUND,
    )
    with precision.products(settings.matmul_precision):
      result = finetune.run(context)
    return jax.tree.map(jnp.add, received, result.update)

  return rounds._replace(view=view, personal=True)

"""The learning rate of what clients train after the last round."""

import dataclasses
import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.clients import local_optimizers

import cases

ROUNDS, FIRST = 3, 0.4
FINE_TUNED = ('fedavg_finetune', 'reptile', 'fedbabu')


def _cosine(number):
  """From `FIRST` to zero, which a round after the last one would have."""
  return FIRST * 0.5 * (1 + jnp.cos(math.pi * number / ROUNDS))


def _toy(name):
  """The federation of an algorithm, and its data."""
  types = ('common', 'personal' if name == 'fedbabu' else 'common')
  return cases.toy_federation(types)


def _state(name):
  """After some rounds, always the same."""
  federation, data = _toy(name)
  algorithm = algorithms.ALGORITHMS[name].build(federation)
  state = cases.start(algorithm, data)
  return dataclasses.replace(state, round=jnp.int32(ROUNDS))


def _views(name, rate, **own):
  """The clients' models in that state.

  Args:
    name: Of the algorithm.
    rate: Of local training, a schedule.
    **own: Settings of the algorithm's own.
  """
  federation, data = _toy(name)
  local = local_optimizers.LocalSgd(learning_rate=rate, batch_size=2)
  algorithm = algorithms.ALGORITHMS[name].build(federation, local, **own)
  return cases.views_of(algorithm, _state(name), data)


@functools.cache
def _program(name, rate=None):
  """`(a number) -> views`, which is the rate of fine-tuning alone or of all.

  Args:
    name: Of the algorithm.
    rate: Of local training, a schedule; by default it is the number, too.
  """
  federation, data = _toy(name)

  @testing.jit
  def views(number, state, data):
    own = {} if rate is None else {'finetune_learning_rate': number}
    local = local_optimizers.LocalSgd(
      learning_rate=number if rate is None else rate, batch_size=2
    )
    algorithm = algorithms.ALGORITHMS[name].build(federation, local, **own)
    view = lambda client: algorithm.view(state, data, client, None)
    return jax.vmap(view)(cohorts.everyone(data))

  return lambda number: views(jnp.float32(number), _state(name), data)


class FineTuningRateTest(parameterized.TestCase):
  @parameterized.parameters(*FINE_TUNED)
  def test_it_is_that_before_the_schedule(self, name):
    found = _views(name, _cosine)
    testing.assert_trees_close(found, _program(name)(FIRST))
    untrained = _state(name).params['layer_0']['kernel']
    moved = np.abs(found['layer_0']['kernel'] - untrained)
    self.assertGreater(moved.max(), 0.01)

  @parameterized.parameters((0.0, FIRST), (0.3, 0.3))
  def test_a_traced_one_is_as_a_number(self, own, rate):
    name = 'fedavg_finetune'
    found = _program(name, _cosine)(own)
    testing.assert_trees_close(found, _program(name)(rate))

  @parameterized.parameters(*FINE_TUNED)
  def test_it_may_be_one_of_its_own(self, name):
    """Which a schedule that starts at zero needs."""
    warm = optax.linear_schedule(0.0, FIRST, 2)
    with self.assertRaisesRegex(ValueError, 'does not start at 0'):
      _views(name, warm)
    found = _views(name, warm, finetune_learning_rate=0.3)
    testing.assert_trees_close(found, _program(name)(0.3))

  def test_a_client_ends_where_that_rate_leads(self):
    """A mean of 2, and a client's of 4: E steps go 1 - (1 - 2 eta)^E there."""
    federation, data = testing.mean_estimation([[0.0], [4.0]], [0, 0], 'common')
    local = local_optimizers.LocalSgd(learning_rate=_cosine, batch_size=0)
    state, views = cases.train(
      fedavg_finetune.fedavg_finetune,
      federation,
      data,
      local,
      ROUNDS,
      {'finetune_epochs': 2},
    )
    shared = float(state.params['output']['bias'][0])
    left = (1 - 2 * FIRST) ** 2
    np.testing.assert_allclose(
      views['output']['bias'][:, 0],
      [left * shared, 4 + left * (shared - 4)],
      rtol=1e-5,
    )

  def test_a_held_out_client_has_it_too(self):
    """Its only example is 4, and it starts from 2."""
    federation, data = testing.mean_estimation([[0.0], [4.0]], [0, 0], 'common')
    algorithm = fedavg_finetune.fedavg_finetune(federation)
    state = cases.start(algorithm, data)
    params = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), state.params)
    trained = adaptation.Trained(
      params=params,
      initial=params,
      client_tasks=data.partition.client_tasks,
      key=state.key,
      round=jnp.int32(ROUNDS),
    )
    adapted = adaptation.adapted(
      algorithm,
      federation,
      adaptation.Adaptation(
        local_optimizers.LocalSgd(learning_rate=_cosine, batch_size=0),
        jax.tree.map(lambda _: True, federation.layer_types),
      ),
      1,
      1,
    )
    views = cases.views_of(adapted, trained, data)
    np.testing.assert_allclose(
      views['output']['bias'][:, 0],
      [2 - 4 * FIRST, 2 + 4 * FIRST],
      rtol=1e-5,
    )

  def test_it_is_no_negative_number(self):
    federation, _ = cases.toy_federation()
    with self.assertRaisesRegex(
      ValueError, '`finetune_learning_rate` >= 0, got -0.1'
    ):
      fedavg_finetune.fedavg_finetune(federation, finetune_learning_rate=-0.1)


if __name__ == '__main__':
  absltest.main()

"""Law: a round and an evaluation compile once, whatever the cohort."""

import contextlib
import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax

from fmtl_jax import evaluation
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers


_COMPILED = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def _compilations():
  """Lists the programs that are compiled inside the block."""
  compiled = []

  def listen(event, unused_seconds, **unused_details):
    if event == _COMPILED:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


class CompilationsTest(parameterized.TestCase):
  @parameterized.parameters((1, True), (2, False))
  def test_rounds_and_evaluations_compile_once(self, num_slots, donate):
    data = testing.toy_data(7, 3, num_slots)
    federation, _ = testing.toy_federation(('common', 'task', 'personal'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(
        optimizer=optax.adam,
        learning_rate=optax.linear_schedule(0.1, 0.01, 5),
        keep_optimizer_state=True,
        batch_size=2,
      ),
      round_settings.RoundSettings(
        clients_per_task=1,
        server={'common': server_optimizers.ServerOptimizer(optax.adam)},
      ),
    )
    traced = {'round': 0, 'evaluate': 0}

    def counted(name, function):
      def call(*args):
        traced[name] += 1
        return function(*args)

      return call

    round_fn = testing.jit(
      counted('round', algorithm.round), donate_argnums=0 if donate else ()
    )
    evaluate = testing.jit(
      counted('evaluate', evaluation.evaluator(federation, algorithm))
    )
    partition = data.partition
    rows = (partition.test, partition.pooled_test)
    data = jax.device_put(data)
    rows = jax.device_put(rows)
    state = algorithm.init(jax.random.key(0), data)
    evaluate(state, data, *rows)
    state, metrics = round_fn(state, data)
    cohorts = {tuple(np.asarray(metrics['client']))}
    with _compilations() as compiled:
      for _ in range(4):
        state, metrics = round_fn(state, data)
        evaluate(state, data, *rows)
        cohorts.add(tuple(np.asarray(metrics['client'])))
    self.assertEmpty(compiled)
    self.assertEqual(traced, {'round': 1, 'evaluate': 1})
    self.assertGreater(len(cohorts), 1)

  def test_another_split_of_the_same_shape_compiles_nothing(self):
    data = testing.toy_data(6, 3)
    order = np.random.default_rng(0).permutation(len(data.examples.features))
    rows = dataclasses.replace(
      data.partition.train, index=order[: len(data.partition.train.index)]
    )
    other = dataclasses.replace(
      data, partition=dataclasses.replace(data.partition, train=rows)
    )
    data, other = jax.device_put((data, other))
    federation, _ = testing.toy_federation(('common', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    round_fn = testing.jit(algorithm.round)
    state = algorithm.init(jax.random.key(0), data)
    expected, _ = round_fn(state, data)
    with _compilations() as compiled:
      state, _ = round_fn(state, other)
    self.assertEmpty(compiled)
    kernel = lambda state: np.asarray(state.params['layer_0']['kernel'])
    self.assertGreater(np.abs(kernel(state) - kernel(expected)).max(), 1e-4)


if __name__ == '__main__':
  absltest.main()

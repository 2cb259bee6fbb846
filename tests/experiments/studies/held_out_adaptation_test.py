"""Laws of adaptation: how clients left out of training get their models."""

import dataclasses
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.studies import case_runs
from experiments.studies import held_out
from experiments.studies import held_out_adaptation
from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import precision
from fmtl_jax import testing
from fmtl_jax import vertical
from fmtl_jax.algorithms import finetuning
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import toy_held_out as toy


def _initial_states(case):
  """As `case_runs.initial_states`, to be traced."""
  one = jax.tree.map(lambda x: x[0], case.runs)
  data = dataclasses.replace(case.data, partition=one.train)
  state = case.make_algorithm(case.federation, {}).init(one.key, data)
  return jax.tree.map(lambda x: jnp.stack([x] * len(case.runs.key)), state)


class AdaptationTest(program_test.ToyTestCase):
  """Held-out clients of untrained algorithms: states are made up."""

  def prepare(self, name, fields=None, source=None):
    source = source or program_test.toy_source()
    config = toy.config({'cases': (name,), 'unseen.start': 'mean'})
    for field, value in (fields or {}).items():
      config_lib.set_field(config, field, value)
    held = toy.splits_of(source, config)
    (plan,) = held_out.plans_of(config, source, held)
    state = case_runs.initial_states(plan.case)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: x + rng.normal(size=x.shape).astype(np.float32), state.params
    )
    state = dataclasses.replace(state, params=params)
    found = held_out_adaptation.clients_of(plan, held)
    return plan, found, held_out_adaptation.trained_of(plan, state, state)

  def view(self, prepared, count, number=0, change=None):
    """The adapted view of a held-out client of the first seed."""
    _, found, trained = prepared
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    if change is not None:
      data = change(data)

    def view(trained, count):
      cohort = cohorts.select(
        data, jnp.array([number]), jnp.ones((1, data.num_slots), bool)
      )
      row = jax.tree.map(lambda x: x[0], cohort)
      algorithm = found.with_examples(count)
      return algorithm.view(trained, data, row, found.federation.frozen)

    return testing.jit(view)(pick(trained), jnp.int32(count))

  def test_the_body_of_fedrep_stays_and_its_head_learns(self):
    prepared = self.prepare('fedrep')
    self.assertEqual(held_out_adaptation.adapted_layers(prepared[0]), 'output')
    before, after = self.view(prepared, 0), self.view(prepared, 8)
    params = jax.tree.map(lambda x: x[0], prepared[2].params)
    testing.assert_trees_equal(before['dense_0'], params['dense_0'])
    testing.assert_trees_equal(after['dense_0'], params['dense_0'])
    head = lambda view: view['output']['kernel']
    self.assertGreater(float(abs(head(after) - head(before)).max()), 1e-3)

  def test_a_head_starts_from_the_mean_over_the_clients_of_its_task(self):
    prepared = self.prepare('fedrep')
    plan, found, trained = prepared
    tasks = np.asarray(plan.case.runs.train.client_tasks[0])[:, 0]
    own = np.asarray(found.partitions.client_tasks[0])[1, 0]
    heads = np.asarray(trained.params['output']['kernel'])[0]
    start = self.view(prepared, 0, number=1)['output']['kernel']
    np.testing.assert_allclose(start, heads[tasks == own].mean(0), atol=1e-6)

  def test_heads_that_are_the_same_have_themselves_as_mean(self):
    head = jnp.array([0.1, 0.7, 1 / 3])
    copies = jnp.stack([head] * 7)
    testing.assert_trees_equal(
      adaptation._mean(copies, jnp.arange(7) != 2), head
    )

  def test_a_task_that_was_trained_starts_from_its_copy(self):
    prepared = self.prepare('multi_task_fl')
    _, found, trained = prepared
    own = np.asarray(found.partitions.client_tasks[0])[1, 0]
    start = self.view(prepared, 0, number=1)['output']
    testing.assert_trees_equal(
      jax.tree.map(lambda x: x[0], start),
      jax.tree.map(lambda x: x[0, own], trained.params['output']),
    )

  def test_a_task_that_is_new_starts_from_the_mean_of_all(self):
    prepared = self.prepare('multi_task_fl', toy.OF_PEOPLE, toy.people())
    copies = np.asarray(prepared[2].params['output']['kernel'])[0]
    start = self.view(prepared, 0)['output']['kernel']
    self.assertLen(copies, program_test.CLIENTS - 2)
    np.testing.assert_allclose(start[0], copies.mean(0), atol=1e-6)

  def test_examples_behind_the_first_ones_do_nothing(self):
    prepared = self.prepare('fedavg_finetune')

    def poisoned(data):
      rows = np.asarray(data.partition.train.groups()[0])[3:]
      features = data.examples.features.copy()
      features[rows] = 1e6
      examples = dataclasses.replace(data.examples, features=features)
      return dataclasses.replace(data, examples=examples)

    testing.assert_trees_equal(
      self.view(prepared, 3, change=poisoned), self.view(prepared, 3)
    )
    with self.assertRaises(AssertionError):
      testing.assert_trees_equal(
        self.view(prepared, 4, change=poisoned), self.view(prepared, 4)
      )

  def test_fine_tuning_is_that_of_training_clients(self):
    prepared = self.prepare('fedavg_finetune', {'client.batch_size': 4})
    plan, found, trained = prepared
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    local = local_optimizers.LocalSgd(
      learning_rate=plan.config.unseen.learning_rate, batch_size=4, epochs=2
    )
    plain = plan.case.make_algorithm(plan.case.test_federation, {})
    plain = plain._replace(
      view=lambda state, data, client, frozen: found.federation.broadcast(
        state.params, client.index
      )
    )
    settings = mock.Mock(
      matmul_precision=precision.HIGHEST,
      local_data=lambda _, data, client: client_batches.LocalData(data, client),
    )
    tuned = finetuning.finetuned(plain, found.federation, local, settings)

    def view(state):
      everyone = cohorts.everyone(data)
      row = jax.tree.map(lambda x: x[1], everyone)
      return tuned.view(state, data, row, found.federation.frozen)

    wanted = testing.jit(view)(pick(trained))
    testing.assert_trees_close(self.view(prepared, 8, number=1), wanted)

  def test_a_proximal_term_keeps_held_out_clients_near_the_global_model(self):
    moved = {}
    for name, fields in (
      ('fedavg_finetune', {}),
      ('ditto', {'algorithm.ditto.lam': 10.0}),
    ):
      prepared = self.prepare(name, fields)
      start, end = self.view(prepared, 0), self.view(prepared, 8)
      moved[name] = float(
        abs(end['output']['kernel'] - start['output']['kernel']).sum()
      )
    self.assertGreater(moved['ditto'], 0)
    self.assertLess(moved['ditto'], 0.9 * moved['fedavg_finetune'])

  def test_held_out_clients_take_the_cluster_that_suits_their_examples(self):
    prepared = self.prepare('ifca')
    _, found, trained = prepared
    clusters = [
      jax.tree.map(lambda x, n=n: x[0, n], trained.params) for n in range(2)
    ]
    taken = self.view(prepared, 8)
    losses = []
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    row = jax.tree.map(lambda x: x[0], cohorts.everyone(data))
    batch = client_batches.LocalData(data, row).batch(jnp.arange(8))
    for cluster in clusters:
      view = jax.tree.map(lambda s, x: x.reshape(s.shape), taken, cluster)
      losses.append(
        float(found.federation.objective(view, None, batch, row.active)[0])
      )
    best = clusters[int(np.argmin(losses))]
    testing.assert_trees_equal(
      jax.tree.leaves(taken)[0], jax.tree.leaves(best)[0]
    )

  @parameterized.parameters(
    *(
      n
      for n, c in cases.CASES.items()
      if 'data.tasks_per_client' not in c.settings
      and c.algorithm not in vertical.ALGORITHMS  # Of parties, not clients.
    )
  )
  def test_held_out_clients_of_any_algorithm_have_a_model(self, name):
    spec = algorithms.ALGORITHMS.get(cases.CASES[name].algorithm)
    network = dict(spec.network) if spec else {}
    network.pop('adapters.targets', None)  # Nothing is pre-trained here.
    config = toy.config(
      {'cases': (name,), 'cohort.clients_per_task': 0}
      | {f'model.{field}': value for field, value in network.items()}
    )
    source = program_test.toy_source()
    held = toy.splits_of(source, config)
    (plan,) = held_out.plans_of(config, source, held)
    found = held_out_adaptation.clients_of(plan, held)
    shapes = jax.eval_shape(
      lambda: held_out_adaptation.evaluation_fn(plan, found)(
        held_out_adaptation.trained_of(plan, *[_initial_states(plan.case)] * 2),
        found.partitions,
        found.data.examples,
        found.federation.frozen,
      )
    )
    self.assertEqual(shapes['accuracy'].shape, (2, 3, 2, 1))


if __name__ == '__main__':
  absltest.main()

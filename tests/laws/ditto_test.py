"""Ditto against the loops of its paper, and its limits."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import ditto
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive

LOCAL = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)


@dataclasses.dataclass
class Ditto(naive.Federation):
  """Algorithm 1 of the paper in loops."""

  lam: float = 0.0
  personal_epochs: int = 1

  def __post_init__(self):
    super().__post_init__()
    self.center = None

  def extra_gradient(self, params, key, member):
    if self.center is None:
      return 0
    (layer, name), place = key
    own, center = params[layer][name], self.center[layer][name]
    return self.lam * (own[place] - center[place])

  def round(self, params, cohort, number):
    new = super().round(params, cohort, number)
    self.center = params
    for member in cohort:
      model = self.own_model(params, member.client)
      personal = dataclasses.replace(member, orders=member.personal_orders)
      result = self.local_training(model, personal, number)
      self.keep(member.client, result)
    self.center = None
    return new

  def personal(self, params, number):
    return self.own_model(params, number)


class DittoTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=ditto.ditto,
      reference=Ditto,
      own={'lam': 0.7, 'personal_epochs': 2},
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=4,
      build=ditto.ditto,
      reference=Ditto,
      own={'lam': 0.5, 'personal_epochs': 1},
    )

  def test_the_shared_part_is_that_of_the_label_rule(self):
    """Whatever the personal models do; exactly."""
    federation, data = testing.toy_federation(
      ('common', 'task', 'personal'), cases.toy_data(5, 3, 2)
    )
    found, _ = cases.train(
      ditto.ditto, federation, data, LOCAL, clients_per_task=1, own={'lam': 3.0}
    )
    expected, _ = cases.train(
      multi_task_fl.multi_task_fl, federation, data, LOCAL, clients_per_task=1
    )
    testing.assert_trees_close(found.params, expected.params, 1e-6, 1e-7)

  def test_without_a_pull_personal_models_are_isolated_training(self):
    """On full batches: shuffled orders are those of another key."""
    local = dataclasses.replace(LOCAL, batch_size=0)
    federation, data = cases.toy_federation(('common', 'common'))
    _, found = cases.train(
      ditto.ditto, federation, data, local, own={'lam': 0.0}
    )
    alone, _ = testing.toy_federation(('personal', 'personal'), data)
    _, expected = cases.train(multi_task_fl.multi_task_fl, alone, data, local)
    expected['layer_1'] = jax.tree.map(lambda x: x[:, 0], expected['layer_1'])
    testing.assert_trees_close(found, expected)

  def test_a_strong_pull_gives_the_model_that_was_sent(self):
    """A step with eta lambda = 1 ends one gradient away from it."""
    federation, data = cases.toy_federation(('common', 'personal'))
    distances = []
    for rate in (1e-2, 1e-3):
      local = local_optimizers.LocalSgd(learning_rate=rate, batch_size=0)
      own = {'lam': 1 / rate, 'personal_epochs': 3}
      sent, _ = cases.train(
        multi_task_fl.multi_task_fl, federation, data, local, rounds=2
      )
      _, found = cases.train(ditto.ditto, federation, data, local, own=own)
      far = np.abs(
        found['layer_0']['kernel'] - sent.params['layer_0']['kernel']
      )
      distances.append(float(far.max()))
    self.assertGreater(distances[0], 1e-5)
    np.testing.assert_allclose(distances[0] / distances[1], 10, rtol=0.1)

  def test_the_personal_models_have_an_order_of_their_own(self):
    """Otherwise they would equal the local ones of the first round."""
    federation, data = testing.toy_federation(
      ('personal', 'personal'), cases.toy_data(3, 3, sizes=(8,))
    )
    state, found = cases.train(
      ditto.ditto, federation, data, LOCAL, rounds=1, own={'lam': 0.0}
    )
    far = np.abs(found['layer_0']['kernel'] - state.params['layer_0']['kernel'])
    self.assertTrue((far.max((1, 2)) > 1e-4).all())

  def test_who_takes_no_part_keeps_the_model(self):
    federation, data = cases.toy_federation(('common', 'common'))
    algorithm = ditto.ditto(
      federation, LOCAL, round_settings.RoundSettings(clients_per_task=1)
    )
    start, state, metrics, _ = cases.run(algorithm, data)
    moved = [
      bool(np.any(np.asarray(new) != np.asarray(old)))
      for new, old in zip(
        state.clients.personal.params['layer_0']['kernel'],
        start.clients.personal.params['layer_0']['kernel'],
        strict=True,
      )
    ]
    drawn = set(metrics['client'][0].tolist())
    self.assertEqual(set(np.flatnonzero(moved).tolist()), drawn)

  @parameterized.parameters(
    ({'lam': -0.1}, 'Expected `lam` >= 0, got -0.1'),
    ({'personal_epochs': -1}, 'Expected `personal_epochs` >= 0, got -1'),
  )
  def test_a_negative_number_is_refused(self, own, sentence):
    federation, _ = cases.toy_federation()
    with self.assertRaisesRegex(ValueError, sentence):
      ditto.ditto(federation, **own)


if __name__ == '__main__':
  absltest.main()

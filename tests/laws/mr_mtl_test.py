"""MR-MTL against loops, its limit, and what it and its server's mean are."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import privacy
from fmtl_jax import testing
from fmtl_jax.algorithms import mr_mtl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive

LOCAL = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)


@dataclasses.dataclass
class MrMtl(naive.Federation):
  """Every client trains its model; the server follows their mean."""

  lam: float = 0.0
  of_all = True

  def __post_init__(self):
    super().__post_init__()
    self.models, self.reported, self.mean = {}, {}, None

  def extra_gradient(self, params, key, member):
    (layer, name), place = key
    if self.types[layer, name] == 'personal':
      return 0
    mean = self.mean[layer][name][place]
    return self.lam * (params[layer][name][place] - mean)

  def local_training(self, params, member, number):
    model = self.models[member.client]
    reported = self.reported[member.client]
    result = super().local_training(model, member, number)
    sent = {}
    for ((layer, name), place), value in result.items():
      change = value - reported[layer][name][place]
      sent[(layer, name), place] = params[layer][name][place] + change
      model[layer][name][place] = value
      is_personal = self.types[layer, name] == 'personal'
      if is_personal or self.weight_at((layer, name), place, [], member):
        reported[layer][name][place] = value
    return sent

  def round(self, params, cohort, number):
    if not self.models:
      for client in range(len(self.clients)):
        self.models[client] = naive.copied(params)
        self.reported[client] = naive.copied(params)
    self.mean = params
    new = super().round(params, cohort, number)
    for layer, name in self.types:
      label = self.types[layer, name]
      places = {'common': [()], 'task': [(t,) for t in range(len(self.tasks))]}
      for place in places.get(label, []):
        old, full = params[layer][name][place], new[layer][name][place]
        share = self.share((layer, name), place, cohort)
        new[layer][name][place] = old + share * (full - old)
    return new

  def personal(self, params, number):
    return self.models[number]


class MrMtlTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_loops(self):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
      weighting={'common': 'uniform'},
      rounds=3,
      build=mr_mtl.mr_mtl,
      reference=MrMtl,
      own={'lam': 0.6},
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    """Momentum of a slot waits for the rounds that it takes part in."""
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3, momentum=0.5, keep_momentum=True),
      clients_per_task=1,
      rounds=7,
      build=mr_mtl.mr_mtl,
      reference=MrMtl,
      own={'lam': 0.6},
    )

  def test_with_privacy_the_mean_is_that_of_the_clients_of_a_round(self):
    """Of all models where all take part, as without privacy."""
    data = cases.toy_data(6, 2)
    federation, _ = testing.toy_federation(('common', 'task'), data)
    private = privacy.ClientPrivacy(clipping_norm=np.inf, sampling='fixed')
    uniform = dict.fromkeys(('common', 'task'), 'uniform')
    for count, others in ((0, {'weighting': uniform}), (2, {})):
      state, _ = cases.train(
        mr_mtl.mr_mtl,
        federation,
        data,
        LOCAL,
        2,
        {'lam': 0.6},
        clients_per_task=count,
        privacy=private,
      )
      if others:
        expected, _ = cases.train(
          mr_mtl.mr_mtl, federation, data, LOCAL, 2, {'lam': 0.6}, **others
        )
        testing.assert_trees_close(
          state.params, expected.params, rtol=1e-5, atol=1e-6
        )
        continue
      key = cohorts.round_keys(state.key, 1)[0]
      drawn, _ = cohorts.draw_clients(key, data, (2, 2), federation.group_sizes)
      models = federation.of_type('common', state.clients.params)
      testing.assert_trees_close(
        federation.of_type('common', state.params),
        jax.tree.map(lambda x, i=drawn: np.asarray(x)[i].mean(0), models),
        rtol=1e-5,
        atol=1e-6,
      )

  def test_without_a_pull_it_is_isolated_training(self):
    """Also where some take no part, and with what optimizers keep."""
    local = dataclasses.replace(
      LOCAL,
      optimizer=local_optimizers.Sgd(momentum=0.5),
      keep_optimizer_state=True,
    )
    federation, data = cases.toy_federation(('common', 'task'))
    _, found = cases.train(
      mr_mtl.mr_mtl,
      federation,
      data,
      local,
      4,
      {'lam': 0.0},
      clients_per_task=1,
    )
    alone, _ = testing.toy_federation(('personal', 'personal'), data)
    _, expected = cases.train(
      multi_task_fl.multi_task_fl, alone, data, local, 4, clients_per_task=1
    )
    testing.assert_trees_close(found, expected)

  @parameterized.parameters((1, 'uniform'), (0, 'examples'))
  def test_the_server_keeps_the_mean_of_all_models(self, count, weighting):
    federation, data = cases.toy_federation(('common', 'task'))
    state, views = cases.train(
      mr_mtl.mr_mtl,
      federation,
      data,
      LOCAL,
      4,
      {'lam': 0.3},
      clients_per_task=count,
      weighting={'common': weighting, 'task': weighting},
    )
    task = np.asarray(data.partition.client_tasks)[:, 0]
    weights = np.asarray(data.partition.train.sizes, float)
    weights = weights if weighting == 'examples' else np.ones_like(weights)
    for name in ('kernel', 'bias'):
      leaf = np.asarray(views['layer_0'][name])
      np.testing.assert_allclose(
        state.params['layer_0'][name],
        np.average(leaf, 0, weights),
        rtol=1e-4,
        atol=1e-6,
      )
      leaf = np.asarray(views['layer_1'][name])[:, 0]
      for number in range(3):
        of_task = task == number
        np.testing.assert_allclose(
          state.params['layer_1'][name][number],
          np.average(leaf[of_task], 0, weights[of_task]),
          rtol=1e-4,
          atol=1e-6,
        )
        self.assertGreater(np.ptp(leaf[of_task], 0).max(), 1e-3)

  def test_it_reaches_the_minimum_of_the_sum(self):
    """Of (w_m - y_m)^2 + lambda / 2 (w_m - mean)^2, known in closed form."""
    labels, lams = np.array([1.0, -2.0, 4.0]), (0.5, 8.0)
    federation, data = testing.mean_estimation(
      labels[:, None].tolist(), [0, 0, 0], 'common'
    )
    local = local_optimizers.LocalSgd(learning_rate=0.05, batch_size=0)
    found = cases.train_each(
      mr_mtl.mr_mtl, federation, data, local, 150, [{'lam': x} for x in lams]
    )
    for lam, (state, views) in zip(lams, found, strict=True):
      expected = (2 * labels + lam * labels.mean()) / (2 + lam)
      np.testing.assert_allclose(views['output']['bias'][:, 0], expected, 1e-4)
      np.testing.assert_allclose(
        state.params['output']['bias'], [labels.mean()], 1e-4
      )

  def test_a_diverged_slot_that_takes_no_part_spoils_nothing(self):
    """Its head is hidden in training, and kept as it is."""
    federation, data = testing.toy_federation(
      ('common', 'task'), cases.toy_data(8, 4, 2)
    )
    algorithm = mr_mtl.mr_mtl(
      federation,
      LOCAL,
      round_settings.RoundSettings(clients_per_task=1),
      lam=0.5,
    )
    start = testing.jit(algorithm.init)(jax.random.key(0), data)
    round_fn = testing.jit(algorithm.round)
    expected, metrics = round_fn(start, data)
    clients, tasks = np.asarray(metrics['client']), np.asarray(metrics['task'])
    place = next(
      (client, slot)
      for client, row in zip(clients, tasks, strict=True)
      for slot in range(2)
      if client < data.num_clients and row[slot] == data.num_tasks
    )
    bad = jax.tree.map(np.array, start.clients.params['layer_1'])
    for leaf in jax.tree.leaves(bad):
      leaf[place] = np.nan
    params = start.clients.params | {'layer_1': bad}
    state, _ = round_fn(
      dataclasses.replace(start, clients=start.clients._replace(params=params)),
      data,
    )
    testing.assert_trees_equal(state.params, expected.params)
    kernel = np.asarray(state.clients.params['layer_1']['kernel'])
    self.assertTrue(np.isnan(kernel[place]).all())
    others = np.delete(kernel.reshape(16, -1), place[0] * 2 + place[1], 0)
    self.assertTrue(np.isfinite(others).all())

  def test_a_negative_pull_is_refused(self):
    federation, _ = cases.toy_federation()
    with self.assertRaisesRegex(ValueError, 'Expected `lam` >= 0, got -0.1'):
      mr_mtl.mr_mtl(federation, lam=-0.1)


if __name__ == '__main__':
  absltest.main()

"""SCAFFOLD against the loops of its paper, and what it is for."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import scaffold
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive


class Scaffold(naive.Federation):
  """Algorithm 1 of the paper, option II, in loops."""

  of_all = True

  def __post_init__(self):
    super().__post_init__()
    self.server_variates, self.variates = {}, {}

  def extra_gradient(self, params, key, member):
    if self.types[key[0]] == 'personal':
      return 0
    own = self.variates.get((member.client, key), 0)
    return self.server_variates.get(key, 0) - own

  def round(self, params, cohort, number):
    new = super().round(params, cohort, number)
    rate = naive.value_of(self.rate, number)
    reports = {}
    for member in cohort:
      result = self.local_training(params, member, number)
      for key, value in result.items():
        leaf, place = key
        if self.types[leaf] == 'personal':
          continue
        weight = self.weight_at(leaf, place, cohort, member)
        if weight > 0:
          start = params[leaf[0]][leaf[1]][place]
          change = (start - value) / (self.work(member) * rate)
          change = change - self.server_variates.get(key, 0)
          reports.setdefault(key, []).append((weight, member.client, change))
    for key, given in reports.items():
      total = sum(weight for weight, _, _ in given)
      mean = sum(weight * change for weight, _, change in given) / total
      for _, client, change in given:
        place = client, key
        self.variates[place] = self.variates.get(place, 0) + change
      share = self.share(*key, cohort)
      before = self.server_variates.get(key, 0)
      self.server_variates[key] = before + share * mean
    return new


class ScaffoldTest(parameterized.TestCase):
  @parameterized.parameters(
    ('examples', 0.0), ('uniform', 0.0), ('task_balanced', 0.5)
  )
  def test_rounds_are_those_of_the_paper(self, weighting, momentum):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(rate=0.1, batch_size=2, epochs=2, momentum=momentum),
      clients_per_task=(2, 1, 2),
      weighting={'common': weighting},
      rounds=3,
      build=scaffold.scaffold,
      reference=Scaffold,
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=4,
      build=scaffold.scaffold,
      reference=Scaffold,
    )

  def test_the_first_round_is_that_of_fedavg(self):
    """With variates of zero; the second one is another."""
    federation, data = cases.toy_federation(('common', 'common'))
    settings = round_settings.RoundSettings(weighting={'common': 'uniform'})
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    states = []
    for build in (scaffold.scaffold, multi_task_fl.multi_task_fl):
      algorithm = build(federation, local, settings)
      state = cases.start(algorithm, data)
      round_fn = testing.jit(algorithm.round)
      for _ in range(2):
        state, _ = round_fn(state, data)
        states.append(state.params)
    testing.assert_trees_close(states[0], states[2])
    far = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), states[1], states[3])
    self.assertGreater(max(map(float, jax.tree.leaves(far))), 1e-3)

  def test_it_reaches_the_optimum_that_drifting_clients_miss(self):
    """With several local steps, federated averaging rests elsewhere."""
    federation, data = cases.unlike_clients()
    local = local_optimizers.LocalSgd(
      learning_rate=0.02, batch_size=0, epochs=10
    )
    found = {}
    for build in (scaffold.scaffold, multi_task_fl.multi_task_fl):
      state = cases.run(build(federation, local), data, 60).state
      found[build] = float(state.params['output']['slope'][0])
    self.assertAlmostEqual(found[scaffold.scaffold], 16 / 17, places=4)
    self.assertGreater(abs(found[multi_task_fl.multi_task_fl] - 16 / 17), 0.05)


if __name__ == '__main__':
  absltest.main()

"""pFedMe against the loops of its paper, its limit, and what it minimizes."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import pfedme
from fmtl_jax.clients import local_optimizers

import cases
import naive


@dataclasses.dataclass
class PFedMe(naive.Federation):
  """Algorithm 1 of the paper in loops."""

  lam: float = 15.0
  inner_steps: int = 5
  personal_learning_rate: float = 0.05
  beta: float = 1.0

  def inner_steps_from(self, w, member, rows):
    """K steps from w on some rows."""
    theta = naive.copied(w)
    for _ in range(self.inner_steps):
      grads = self.objective_gradient(theta, member, rows)
      for (layer, name), place in self.touched(member):
        value, center = theta[layer][name][place], w[layer][name][place]
        slope = grads.get(((layer, name), place), 0)
        slope = slope + self.lam * (value - center)
        theta[layer][name][place] = value - self.personal_learning_rate * slope
    return theta

  def local_training(self, params, member, number):
    w, touched = naive.copied(params), self.touched(member)
    for rows in self.batches(member):
      theta = self.inner_steps_from(w, member, rows)
      for (layer, name), place in touched:
        away = w[layer][name][place] - theta[layer][name][place]
        rate = naive.value_of(self.rate, number)
        w[layer][name][place] -= rate * self.lam * away
    return {
      (leaf, place): w[leaf[0]][leaf[1]][place].copy()
      for leaf, place in touched
    }

  def round(self, params, cohort, number):
    new = super().round(params, cohort, number)
    for layer, name in self.types:
      if self.types[layer, name] in ('common', 'task'):
        old, mean = params[layer][name], new[layer][name]
        new[layer][name] = (1 - self.beta) * old + self.beta * mean
    return new

  def personal(self, params, number):
    rows = list(range(len(self.clients[number].features)))
    member = self.everyone()[number]
    return self.inner_steps_from(params, member, rows)


class PFedMeTest(parameterized.TestCase):
  @parameterized.parameters(
    {'lam': 2.0, 'personal_learning_rate': 0.2},
    {'beta': 1.5, 'inner_steps': 3},
  )
  def test_rounds_are_those_of_the_paper(self, **own):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=pfedme.pfedme,
      reference=PFedMe,
      own=own,
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=4,
      build=pfedme.pfedme,
      reference=PFedMe,
      own={'lam': 3.0, 'inner_steps': 2, 'beta': 0.5},
    )

  def test_with_one_inner_step_it_is_fedavg_at_another_rate(self):
    federation, data = cases.toy_federation(('common', 'task', 'personal'))
    own = {'lam': 4.0, 'inner_steps': 1, 'personal_learning_rate': 0.1}
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5),
      learning_rate=0.5,
      batch_size=2,
      keep_optimizer_state=True,
    )
    found, _ = cases.train(pfedme.pfedme, federation, data, local, own=own)
    same = dataclasses.replace(local, learning_rate=0.5 * 4.0 * 0.1)
    expected, _ = cases.train(
      multi_task_fl.multi_task_fl, federation, data, same
    )
    testing.assert_trees_close(found.params, expected.params)

  def test_personal_models_minimize_the_loss_and_the_distance(self):
    """Of (theta - y)^2 + lambda / 2 (theta - w)^2, at the newest w."""
    labels = [[1.0, 3.0], [-4.0], [6.0]]
    federation, data = testing.mean_estimation(labels, [0, 0, 0], 'common')
    local = local_optimizers.LocalSgd(learning_rate=0.1, batch_size=0)
    own = {'lam': 3.0, 'inner_steps': 60, 'personal_learning_rate': 0.1}
    w, mean = 0.0, np.array([2.0, -4.0, 6.0])
    for rounds in (1, 2):
      state, views = cases.train(
        pfedme.pfedme, federation, data, local, rounds, own
      )
      theta = (2 * mean + 3 * w) / (2 + 3)
      sizes = np.array([2, 1, 1])
      w = (sizes * (w - 0.1 * 3 * (w - theta))).sum() / sizes.sum()
      np.testing.assert_allclose(state.params['output']['bias'], [w], 1e-5)
      newest = (2 * mean + 3 * w) / (2 + 3)
      np.testing.assert_allclose(views['output']['bias'][:, 0], newest, 1e-5)

  @parameterized.parameters(
    ({'lam': -1.0}, 'Expected `lam` >= 0, got -1.0'),
    ({'inner_steps': 0}, 'Expected `inner_steps` >= 1, got 0'),
    ({'personal_learning_rate': -0.1}, '`personal_learning_rate` >= 0'),
    ({'beta': -0.5}, 'Expected `beta` >= 0, got -0.5'),
  )
  def test_what_no_experiment_can_have_is_refused(self, own, sentence):
    federation, _ = cases.toy_federation()
    with self.assertRaisesRegex(ValueError, sentence):
      pfedme.pfedme(federation, **own)


if __name__ == '__main__':
  absltest.main()

"""APFL against the loops of its paper, its limits, and what alpha learns."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import apfl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers

import cases
import naive

LOCAL = local_optimizers.LocalSgd(
  optimizer=local_optimizers.Sgd(momentum=0.5),
  learning_rate=0.2,
  batch_size=2,
  keep_optimizer_state=True,
)


@dataclasses.dataclass
class Apfl(naive.Federation):
  """Algorithm 1 of the paper in loops."""

  alpha: float = 0.5
  adapt: bool = False

  def __post_init__(self):
    super().__post_init__()
    self.alphas = dict.fromkeys(range(len(self.clients)), self.alpha)

  def mixture(self, own, shared, alpha):
    return {
      layer: {
        name: alpha * leaf + (1 - alpha) * shared[layer][name]
        for name, leaf in leaves.items()
      }
      for layer, leaves in own.items()
    }

  def local_training(self, params, member, number):
    w, v = naive.copied(params), self.own_model(params, member.client)
    touched = self.touched(member)
    rate = naive.value_of(self.rate, number)
    for rows in self.batches(member):
      alpha = self.alphas[member.client]
      mixed = self.mixture(v, w, alpha)
      at_w = self.objective_gradient(w, member, rows)
      at_mixture = self.objective_gradient(mixed, member, rows)
      slope = 0.0
      for (layer, name), place in touched:
        key = (layer, name), place
        apart = v[layer][name][place] - w[layer][name][place]
        slope += np.sum(apart * at_mixture.get(key, 0))
        w[layer][name][place] -= rate * at_w.get(key, 0)
        v[layer][name][place] -= rate * alpha * at_mixture.get(key, 0)
      if self.adapt:
        self.alphas[member.client] = min(max(alpha - rate * slope, 0), 1)
    self.keep(
      member.client,
      {(leaf, at): v[leaf[0]][leaf[1]][at].copy() for leaf, at in touched},
    )
    return {
      (leaf, place): w[leaf[0]][leaf[1]][place].copy()
      for leaf, place in touched
    }

  def personal(self, params, number):
    own = self.own_model(params, number)
    return self.mixture(own, params, self.alphas[number])


class ApflTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    state = cases.compare(
      ('common', 'common'),
      testing.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=apfl.apfl,
      reference=Apfl,
      own={'alpha': 0.25, 'adapt': False},
    )
    np.testing.assert_array_equal(state.clients.alpha, np.float32([0.25] * 7))

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    state = cases.compare(
      ('common', 'task', 'personal'),
      testing.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=4,
      build=apfl.apfl,
      reference=Apfl,
      own={'alpha': 0.6, 'adapt': True},
    )
    moved = np.abs(np.asarray(state.clients.alpha) - 0.6).max()
    self.assertGreater(moved, 1e-4)

  def test_without_a_share_of_the_own_model_it_is_fedavg(self):
    federation, data = testing.toy_federation(('common', 'task', 'personal'))
    own = {'alpha': 0.0}
    state, found = cases.train(apfl.apfl, federation, data, LOCAL, own=own)
    same, expected = cases.train(
      multi_task_fl.multi_task_fl, federation, data, LOCAL
    )
    testing.assert_trees_close((state.params, found), (same.params, expected))

  def test_with_the_own_model_alone_it_predicts_as_isolated_training(self):
    federation, data = testing.toy_federation(('common', 'common'))
    own = {'alpha': 1.0}
    _, found = cases.train(apfl.apfl, federation, data, LOCAL, own=own)
    alone, _ = testing.toy_federation(('personal', 'personal'), data)
    _, expected = cases.train(multi_task_fl.multi_task_fl, alone, data, LOCAL)
    expected['layer_1'] = jax.tree.map(lambda x: x[:, 0], expected['layer_1'])
    testing.assert_trees_close(found, expected)

  def test_who_differs_from_all_others_learns_to_go_alone(self):
    """Four clients estimate a mean; that of one of them is far away."""
    labels = [[0.1], [-0.1], [0.0], [5.0]]
    federation, data = testing.mean_estimation(labels, [0] * 4, 'common')
    local = local_optimizers.LocalSgd(
      learning_rate=0.05, batch_size=0, epochs=3
    )
    alphas, errors = [], []
    for adapt in (False, True):
      state, views = cases.train(
        apfl.apfl, federation, data, local, 10, {'adapt': adapt}
      )
      alphas.append(np.asarray(state.clients.alpha))
      bias = np.asarray(views['output']['bias'])
      errors.append(np.abs(bias[:, 0] - np.concatenate(labels)))
    np.testing.assert_array_equal(alphas[0], [0.5] * 4)
    self.assertEqual(alphas[1][3], 1)  # It would be more if it could.
    self.assertLess(alphas[1][:3].max(), 0.9)
    self.assertLess(errors[1][3], errors[0][3] / 3)

  @parameterized.parameters(-0.1, 1.1)
  def test_an_alpha_that_is_no_share_is_refused(self, alpha):
    federation, _ = testing.toy_federation()
    with self.assertRaisesRegex(
      ValueError, r'Expected `alpha` in \[0, 1\], got'
    ):
      apfl.apfl(federation, alpha=alpha)


if __name__ == '__main__':
  absltest.main()

"""FedDyn against the loops of its paper, and what it is for."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import feddyn
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive


@dataclasses.dataclass
class FedDyn(naive.Federation):
  """Algorithm 1 of the paper, its argmin by local SGD, in loops."""

  alpha: float = 0.1
  of_all = True

  def __post_init__(self):
    super().__post_init__()
    self.gradients, self.h = {}, {}

  def extra_gradient(self, params, key, member):
    (layer, name), place = key
    if self.types[layer, name] == 'personal':
      return 0
    moved = params[layer][name][place] - self.start[layer][name][place]
    return self.alpha * moved - self.gradients.get((member.client, key), 0)

  def round(self, params, cohort, number):
    self.start = params
    self.servers = {name: Server(self, cohort) for name in ('common', 'task')}
    new = super().round(params, cohort, number)
    for member in cohort:
      trained = self.local_training(params, member, number)
      for key, value in trained.items():
        (layer, name), place = key
        if not self.weight_at((layer, name), place, cohort, member):
          continue  # No example has a label: it is as if not drawn.
        own = member.client, key
        self.gradients[own] = self.gradients.get(own, 0) - self.alpha * (
          value - params[layer][name][place]
        )
    return new


class Server:
  """The server's lines of Algorithm 1, for the cohort of one round."""

  def __init__(self, federation, cohort):
    self.federation, self.cohort = federation, cohort

  def changes(self, place, mean, unused_number):
    """The changes of all leaves of one owner, by leaf."""
    alpha, h = self.federation.alpha, self.federation.h
    changes = {}
    for leaf, moved in mean.items():
      share = self.federation.share(leaf, place, self.cohort)
      h[leaf, place] = h.get((leaf, place), 0) - alpha * share * moved
      changes[leaf] = moved - h[leaf, place] / alpha
    return changes


class FedDynTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
      weighting={'common': 'uniform'},
      rounds=3,
      build=feddyn.feddyn,
      reference=FedDyn,
      own={'alpha': 0.5},
    )

  @parameterized.named_parameters(
    ('some_labels', cases.toy_data(5, 3, 2, missing=0.4)),
    ('owners_nobody_reports_to', cases.partly_labelled()),
  )
  def test_any_layer_types_and_several_tasks_for_each_client(self, data):
    cases.compare(
      ('common', 'task', 'personal'),
      data,
      local=cases.Local(rate=0.1, batch_size=3),
      clients_per_task=1,
      rounds=5,
      build=feddyn.feddyn,
      reference=FedDyn,
    )

  def test_the_first_round_steps_beyond_that_of_fedprox(self):
    """By the share of the weight that reported: -h / alpha is so much of it."""
    federation, data = testing.toy_federation(
      ('common', 'common'), cases.toy_data(6, 3)
    )
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2, epochs=2)
    settings = round_settings.RoundSettings(clients_per_task=1)
    moved = []
    for algorithm in (
      feddyn.feddyn(federation, local, settings, alpha=0.7),
      fedprox.fedprox(federation, local, settings, mu=0.7),
    ):
      start, new, metrics, _ = cases.run(algorithm, data)
      moved.append(jax.tree.map(np.subtract, new.params, start.params))
    sizes = np.asarray(data.partition.train.sizes)
    share = sizes[np.asarray(metrics['client'][0])].sum() / sizes.sum()
    testing.assert_trees_close(
      moved[0], jax.tree.map(lambda x: (1 + share) * x, moved[1])
    )

  def test_h_is_the_mean_gradient_of_all_clients(self):
    """Also of those that are away, if all weigh the same."""
    federation, data = testing.toy_federation(
      ('common', 'common'), cases.toy_data(6, 3)
    )
    algorithm = feddyn.feddyn(
      federation,
      local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2),
      round_settings.RoundSettings(
        clients_per_task=1, weighting={'common': 'uniform'}
      ),
    )
    state = cases.run(algorithm, data, 4).state
    h = state.server['common'].memory
    testing.assert_trees_close(
      h, jax.tree.map(lambda x: np.mean(x, 0), state.clients)
    )
    self.assertGreater(max(np.abs(x).max() for x in jax.tree.leaves(h)), 1e-3)

  @parameterized.parameters(
    ((3, 1), 'uniform', 1, 16 / 17),
    ((3, 1), 'examples', 0, 16 / (3 + 16)),
  )
  def test_it_reaches_the_optimum_that_drifting_clients_miss(
    self, sizes, weighting, clients_per_task, optimum
  ):
    """Of the weighted loss if all take part, with equal weights in any case."""
    federation, data = cases.unlike_clients(sizes)
    local = local_optimizers.LocalSgd(
      learning_rate=0.02, batch_size=0, epochs=10
    )
    settings = round_settings.RoundSettings(
      clients_per_task=clients_per_task, weighting={'common': weighting}
    )
    found = [
      float(cases.run(algorithm, data, 150).state.params['output']['slope'][0])
      for algorithm in (
        feddyn.feddyn(federation, local, settings, alpha=4.0),
        multi_task_fl.multi_task_fl(federation, local, settings),
      )
    ]
    self.assertAlmostEqual(found[0], optimum, places=3)
    self.assertGreater(abs(found[1] - optimum), 0.05)

  def test_who_takes_no_part_keeps_its_memory(self):
    """Slots that are not drawn, clients without a label, owners of none."""
    federation, data = testing.toy_federation(
      ('common', 'task'), cases.partly_labelled()
    )
    algorithm = feddyn.feddyn(
      federation,
      local_optimizers.LocalSgd(batch_size=2),
      round_settings.RoundSettings(clients_per_task=1),
    )
    state = cases.start(algorithm, data)
    labelled = data.partition.label_counts > 0
    tasks = data.partition.client_tasks
    round_fn = testing.jit(algorithm.round)
    absent = 0
    for _ in range(12):
      new, metrics = round_fn(state, data)
      active = np.zeros(tasks.shape, bool)
      for client, of_slots in zip(
        np.asarray(metrics['client']), np.asarray(metrics['task']), strict=True
      ):
        if client < len(tasks):
          active[client] = of_slots < 2
      reports = active & labelled
      absent += (active.any(1) & ~reports.any(1)).sum()
      changed = jax.tree.map(
        lambda x, y: np.asarray(x != y),
        (state.clients, state.server['task'].memory, state.params),
        (new.clients, new.server['task'].memory, new.params),
      )
      clients, h, params = changed
      for leaf in clients['layer_0'].values():
        found = leaf.reshape(len(leaf), -1).any(1)
        np.testing.assert_array_equal(found, reports.any(1))
      for leaf in clients['layer_1'].values():
        found = leaf.reshape(leaf.shape[:2] + (-1,)).any(2)
        np.testing.assert_array_equal(found & ~reports, False)
        np.testing.assert_array_equal(found[reports], True)
      for leaf in (*h['layer_1'].values(), *params['layer_1'].values()):
        for task in range(2):
          self.assertEqual(leaf[task].any(), reports[tasks == task].any())
      state = new
    self.assertGreater(absent, 0)

  @parameterized.parameters(0, 0.0, -1.0)
  def test_a_weight_that_is_not_positive_is_refused(self, alpha):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(ValueError, 'Expected `alpha` > 0'):
      feddyn.feddyn(federation, alpha=alpha)


if __name__ == '__main__':
  absltest.main()

"""IFCA against the loops of its paper, and what it is for."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.algorithms import clusters
from fmtl_jax.algorithms import ifca
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.execution import task_devices
from fmtl_jax.rounds import round_settings

import cases
import naive
import planted

testing.use_cpu_devices(8)

SEEN: list[int] = []


@dataclasses.dataclass
class Ifca(naive.Federation):
  """Algorithm 1 of the paper in loops; clusters are owners of a client."""

  clusters: int = 2

  def loss(self, params, number, active):
    """A client's objective on all its examples."""
    client, total = self.clients[number], 0.0
    for slot, task in enumerate(client.tasks):
      losses = []
      if not active[slot]:
        continue
      for row in range(len(client.features)):
        if not np.isnan(client.labels[row, slot]):
          network = self.network(params, number, slot)
          loss, _ = naive.gradient(
            network,
            client.features[row],
            client.labels[row, slot],
            *self.tasks[task],
          )
          losses.append(loss)
      weight = 1.0 if self.task_weights is None else self.task_weights[task]
      total += weight * np.mean(losses) if losses else 0.0
    return total

  def choose(self, params, number, active):
    """Gives a client the cluster whose model suits its data best."""
    losses = []
    for cluster in range(self.clusters):
      self.clients[number].owners['cluster'] = cluster
      losses.append(self.loss(params, number, active))
    self.clients[number].owners['cluster'] = int(np.argmin(losses))

  def round(self, params, cohort, number):
    for member in cohort:
      self.choose(params, member.client, member.active)
      SEEN.append(self.clients[member.client].owners['cluster'])
    return super().round(params, cohort, number)

  def personal(self, params, number):
    self.choose(
      params, number, [t is not None for t in self.clients[number].tasks]
    )
    return params


class IfcaTest(parameterized.TestCase):
  @parameterized.parameters(
    (('cluster', 'cluster'), 1, 'uniform'),
    (('cluster', 'task', 'personal'), 2, 'examples'),
    (('common', 'cluster', 'personal'), 2, 'paper'),
  )
  def test_rounds_are_those_of_the_paper(self, types, slots, weighting):
    SEEN.clear()
    cases.compare(
      types,
      planted.toy_data(7, 3, slots, missing=0.4 * (slots - 1)),
      local=cases.Local(batch_size=3, rate=0.5),
      clients_per_task=(2, 1, 1),
      weighting={'cluster': weighting},
      rounds=3,
      build=ifca.ifca,
      reference=Ifca,
      own={'clusters': 3},
      task_weights=(1.0, 2.0, 0.5),
      **planted.owners(3),
    )
    self.assertGreater(len(set(SEEN)), 1)  # Not all in one cluster.

  def test_a_single_cluster_is_fedavg(self):
    data = planted.toy_data(6, 3)
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    found = {}
    for label, build in (
      ('cluster', functools.partial(ifca.ifca, clusters=1)),
      ('common', multi_task_fl.multi_task_fl),
    ):
      federation, _ = testing.toy_federation(
        (label, label), data, **planted.owners(1)
      )
      algorithm = build(
        federation, local, round_settings.RoundSettings(clients_per_task=1)
      )
      found[label] = cases.run(algorithm, data, 3).state.params
    testing.assert_trees_close(cases.rows(found['cluster'], 0), found['common'])

  @parameterized.parameters('shared', 'per_owner')
  def test_clusters_start_apart(self, initialization):
    data = planted.toy_data(5, 2)
    federation, _ = testing.toy_federation(
      ('common', 'cluster', 'personal'),
      data,
      initialization=initialization,
      **planted.owners(3),
    )
    algorithm = ifca.ifca(federation, clusters=3)
    params = testing.jit(algorithm.init)(jax.random.key(0), data).params
    key = jax.random.split(jax.random.key(0))[0]
    expected = testing.jit(federation.init_params)(key)
    kernels = np.asarray(params['layer_1']['kernel'])
    for i in range(3):
      for j in range(i):
        self.assertGreater(abs(kernels[i] - kernels[j]).max(), 0.1)
    # The first one and what is no cluster's start as ever.
    for name, rows in (('layer_0', ...), ('layer_1', 0), ('layer_2', ...)):
      np.testing.assert_allclose(
        params[name]['kernel'][rows], expected[name]['kernel'][rows], 1e-5
      )

  def test_planted_clusters_are_found_where_fedavg_fails(self):
    build = functools.partial(ifca.ifca, clusters=2)
    [(accuracy, metrics, _)] = planted.runs(build)
    chosen = metrics[-1]['cluster']
    self.assertTrue(planted.same_partition(chosen, planted.TRUTH), chosen)
    self.assertGreater(accuracy.min(), 0.9)
    self.assertLess(planted.accuracy_of_one_model().mean(), 0.7)

  def test_the_order_of_clients_does_not_matter(self):
    order = np.array([3, 0, 5, 1, 7, 4, 2, 6])
    build = functools.partial(ifca.ifca, clusters=3)
    (_, metrics, views), (_, permuted, permuted_views) = planted.runs(
      build,
      (range(len(order)), order),
      types=('cluster', 'cluster'),
      count=3,
      rounds=3,
    )
    for first, second in zip(metrics, permuted, strict=True):
      np.testing.assert_array_equal(first['cluster'][order], second['cluster'])
    testing.assert_trees_close(
      cases.rows(views, order), permuted_views, 1e-4, 1e-5
    )

  def test_clients_on_the_host_choose_where_their_examples_are(self):
    chosen = planted.assert_streamed_rounds_agree(
      functools.partial(ifca.ifca, clusters=3),
      ('common', 'cluster', 'personal'),
      3,
      clients_per_task=2,
    )
    self.assertGreater(len(np.unique(chosen)), 1)

  def test_tasks_may_have_devices_of_their_own(self):
    """A device has the layers of its tasks alone, to choose by."""
    data = planted.toy_data(9, 4)
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), data, **planted.owners(3)
    )
    found = []
    for mesh in (None, testing.mesh({'task': 2, 'client': 2})):
      algorithm = ifca.ifca(
        federation,
        local_optimizers.LocalSgd(learning_rate=0.5, batch_size=2),
        round_settings.RoundSettings(
          clients_per_task=2,
          placement=round_settings.Placement(
            client_axis='client' if mesh else None,
            task_axis='task' if mesh else None,
          ),
        ),
        clusters=3,
      )

      def run(state, data, algorithm=algorithm, mesh=mesh):
        if mesh:
          state = task_devices.own_tasks(federation, state, 'task')
        state, metrics = algorithm.round(state, data)
        if mesh:
          state = task_devices.all_tasks(federation, state, 'task')
        return state, metrics['cluster']

      run = execution.over_devices(run, mesh) if mesh else run
      found.append(testing.jit(run)(cases.start(algorithm, data), data))
    testing.assert_trees_close(found[1][0], found[0][0], 1e-4, 1e-5)
    np.testing.assert_array_equal(found[1][1], found[0][1])
    self.assertGreater(len(np.unique(found[0][1])), 1)

  @parameterized.parameters(
    (('cluster', 'task'), 3, 2, r'2 clusters \(clusters\), got 3; create it'),
    (('common', 'task'), None, 2, 'a federation of 2 clusters .*, got None'),
    (('common', 'task'), 2, 2, 'layers that belong to clusters, got none'),
    (('common', 'task'), None, 0, 'Expected `clusters` >= 1, got 0'),
  )
  def test_another_federation_is_refused(self, types, found, given, sentence):
    settings = {} if found is None else planted.owners(found)
    federation, _ = testing.toy_federation(
      types, planted.toy_data(5, 2), **settings
    )
    with self.assertRaisesRegex(ValueError, sentence):
      ifca.ifca(federation, clusters=given)


class BrokenClusterTest(parameterized.TestCase):
  """A model that diverged suits nobody, though its loss is in no order."""

  def test_nobody_chooses_it(self):
    data = testing.toy_data(4, 2).with_owners(['cluster'])
    federation, _ = testing.toy_federation(
      ['common', 'cluster'],
      data,
      owners=clusters.OWNERS,
      num_owners={'cluster': 2},
    )
    algorithm = ifca.ifca(federation)
    start, round_fn = cases.start(algorithm, data), testing.jit(algorithm.round)
    for broken in (0, 1):
      params = jax.tree.map(np.array, start.params)
      for label, leaf in zip(
        jax.tree.leaves(federation.layer_types),
        jax.tree.leaves(params),
        strict=True,
      ):
        if label == 'cluster':
          leaf[broken] = np.nan
      state = dataclasses.replace(start, params=params)
      _, metrics = round_fn(state, data)
      np.testing.assert_array_equal(metrics['cluster'], 1 - broken)


if __name__ == '__main__':
  absltest.main()

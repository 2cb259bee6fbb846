"""CFL against the loops of its paper, and what it is for."""

import dataclasses
import functools
import itertools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import cfl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import servers

import cases
import naive
import planted

testing.use_cpu_devices(8)

# What splits a cluster whatever its updates are.
ALWAYS = {'eps1': math.inf, 'eps2': 0.0}
NUMBERS: list[list[int]] = []  # Of the clients, after each round.
BIPARTITION = testing.jit(cfl.bipartition)


def bipartitions(members):
  """All ways to split, the first member on the left; `(left, right)`."""
  first, *others = members
  for size in range(len(others)):
    for more in itertools.combinations(others, size):
      left = [first, *more]
      yield left, [i for i in members if i not in left]


def largest_across(similarity, left, right):
  """The largest similarity between two parts."""
  return max(similarity[i][j] for i in left for j in right)


@dataclasses.dataclass
class Cfl(naive.Federation):
  """Algorithm 3 of the paper in loops; all bipartitions are tried."""

  eps1: float = 0.4
  eps2: float = 1.6
  gamma: float = 0.0
  max_clusters: int = 8

  def __post_init__(self):
    super().__post_init__()
    self.used = 1

  def local_training(self, params, member, number):
    return self.ready[member.client]

  def split(self, members, updates, weights):
    """The part that leaves, none if there is no split."""
    total = sum(weights[i] for i in members)
    mean = sum(weights[i] * updates[i] for i in members) / total
    norms = {i: np.linalg.norm(updates[i]) for i in members}
    if np.linalg.norm(mean) >= self.eps1 or max(norms.values()) <= self.eps2:
      return []
    cosine = {
      i: {j: updates[i] @ updates[j] / (norms[i] * norms[j]) for j in members}
      for i in members
    }
    across, right = min(
      (largest_across(cosine, left, right), right)
      for left, right in bipartitions(members)
    )
    return right if self.gamma < math.sqrt((1 - across) / 2) else []

  def round(self, params, cohort, number):
    train = super().local_training
    self.ready = {m.client: train(params, m, number) for m in cohort}
    leaves = [leaf for leaf in self.types if self.types[leaf] == 'cluster']
    updates, weights = {}, {}
    for member in cohort:
      place = self.place(leaves[0], member.client, 0)
      weights[member.client] = self.weight('cluster', cohort, member, None)
      updates[member.client] = np.concatenate(
        [
          (
            self.ready[member.client][leaf, place]
            - params[leaf[0]][leaf[1]][place]
          ).ravel()
          for leaf in leaves
        ]
      )
    params = naive.copied(params)
    for cluster in range(self.used):
      members = [
        m for m in updates if self.clients[m].owners['cluster'] == cluster
      ]
      leaving = []
      if self.used < self.max_clusters and len(members) > 1:
        leaving = self.split(members, updates, weights)
      if not leaving:
        continue
      for layer, name in leaves:
        params[layer][name][self.used] = params[layer][name][cluster]
      if 'cluster' in self.servers:
        traces = self.servers['cluster'].traces
        if (cluster,) in traces:
          traces[self.used,] = traces[cluster,]
      for client in leaving:
        self.clients[client].owners['cluster'] = self.used
        for leaf in leaves:
          values = self.ready[client]
          values[leaf, (self.used,)] = values.pop((leaf, (cluster,)))
      self.used += 1
    NUMBERS.append([client.owners['cluster'] for client in self.clients])
    return super().round(params, cohort, number)


class CflTest(parameterized.TestCase):
  @parameterized.parameters(
    (('cluster', 'cluster'), 1, 'uniform', {'gamma': 0.63}, [2, 3, 4, 4]),
    (
      ('common', 'cluster'),
      1,
      'examples',
      {'eps1': 0.3, 'eps2': 0.6},
      [1, 2, 2, 3],
    ),
    (('cluster', 'task', 'personal'), 2, 'examples', {}, [2, 3, 4, 5]),
    (
      ('common', 'cluster', 'task'),
      2,
      'paper',
      {'max_clusters': 3},
      [2, 3, 3, 3],
    ),
  )
  def test_rounds_are_those_of_the_paper(
    self, types, slots, weighting, own, counts
  ):
    NUMBERS.clear()
    own = {**ALWAYS, 'gamma': 0.0, 'max_clusters': 5, **own}
    state = cases.compare(
      types,
      planted.toy_data(7, 3, slots, missing=0.4 * (slots - 1)),
      local=cases.Local(batch_size=3, rate=0.5),
      weighting={'cluster': weighting},
      servers={'cluster': cases.Server.sgd(1.0, momentum=0.5)},
      rounds=4,
      build=cfl.cfl,
      reference=Cfl,
      own=own,
      task_weights=(1.0, 2.0, 0.5),
      **planted.owners(own['max_clusters']),
    )
    self.assertEqual([len(set(numbers)) for numbers in NUMBERS], counts)
    np.testing.assert_array_equal(state.clients.cluster, NUMBERS[-1])

  @parameterized.parameters(*range(2, 9))
  def test_a_bipartition_is_the_best_one(self, count):
    rng = np.random.default_rng(count)
    for digits in (8, 0):  # With equal similarities, too.
      similarity = np.round(rng.uniform(-2, 2, (10, 10)), digits)
      similarity = np.maximum(similarity, similarity.T)
      members = sorted(rng.permutation(10)[:count].tolist())
      member = np.isin(np.arange(10), members)
      part, across = BIPARTITION(similarity, member)
      left = np.flatnonzero(part).tolist()
      right = np.flatnonzero(member & ~part).tolist()
      self.assertEqual(left[0], members[0])
      self.assertEqual(sorted(left + right), members)
      found = largest_across(similarity, left, right)
      self.assertAlmostEqual(float(across), found, places=6)
      best = min(
        largest_across(similarity, *parts) for parts in bipartitions(members)
      )
      self.assertEqual(found, best)

  @parameterized.parameters(0, 1)
  def test_what_cannot_be_split_stays(self, count):
    member = np.arange(4) < count
    part, across = BIPARTITION(np.zeros((4, 4)), member)
    np.testing.assert_array_equal(part, member)
    self.assertEqual(across, 1)

  def test_it_is_fedavg_before_a_split(self):
    data = planted.toy_data(6, 3)
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)

    def rounds(build, label, clusters, *owns):
      federation, _ = testing.toy_federation(
        (label, label), data, **planted.owners(clusters)
      )
      owns = owns or ({},)
      return cases.train_each(build, federation, data, local, 3, owns)

    [(expected, _)] = rounds(multi_task_fl.multi_task_fl, 'common', 2)
    several = [
      ALWAYS | {'gamma': 0.0} | own
      for own in ({'eps1': 0.0}, {'eps2': math.inf}, {'gamma': 1.0})
    ]
    build = lambda most: functools.partial(cfl.cfl, max_clusters=most)
    for state, _ in (
      *rounds(build(1), 'cluster', 1, ALWAYS),
      *rounds(build(2), 'cluster', 2, *several),
    ):
      testing.assert_trees_close(cases.rows(state.params, 0), expected.params)

  def test_planted_clusters_are_found_where_fedavg_fails(self):
    build = functools.partial(cfl.cfl, eps1=0.05, eps2=0.5, max_clusters=2)
    [(accuracy, metrics, _)] = planted.runs(build)
    clusters = [of_round['cluster'] for of_round in metrics]
    self.assertLen(set(clusters[0].tolist()), 1)
    split = next(c for c in clusters if len(set(c.tolist())) > 1)
    self.assertTrue(planted.same_partition(split, planted.TRUTH), split)
    np.testing.assert_array_equal(clusters[-1], split)
    self.assertGreater(accuracy.min(), 0.9)
    self.assertLess(planted.accuracy_of_one_model().mean(), 0.7)

  def test_the_order_of_clients_does_not_matter(self):
    order = np.array([3, 0, 5, 1, 7, 4, 2, 6])
    build = functools.partial(cfl.cfl, **ALWAYS, max_clusters=4)
    (_, metrics, views), (_, permuted, permuted_views) = planted.runs(
      build,
      (range(len(order)), order),
      types=('cluster', 'cluster'),
      count=4,
      rounds=3,
    )
    for first, second in zip(metrics, permuted, strict=True):
      self.assertTrue(
        planted.same_partition(first['cluster'][order], second['cluster'])
      )
    self.assertLen(set(metrics[-1]['cluster'].tolist()), 4)
    testing.assert_trees_close(
      cases.rows(views, order), permuted_views, 1e-4, 1e-5
    )

  def test_clients_may_be_on_the_host(self):
    clusters = planted.assert_streamed_rounds_agree(
      functools.partial(cfl.cfl, **ALWAYS, max_clusters=3),
      ('common', 'cluster', 'personal'),
      3,
      clients_per_task=0,
    )
    self.assertEqual([len(set(c)) for c in clusters.tolist()], [2, 3, 3])

  def test_a_cluster_of_late_clients_stays_theirs(self):
    """Client 2 is in cluster 1 alone when the others are split again."""
    _, data = testing.mean_estimation(
      [[4.0], [6.0], [-90.0]], [0] * 3, 'common'
    )
    data = data.with_owners(['cluster'])
    federation = federation_lib.Federation.create(
      testing.constant(),
      [('output/bias', 'cluster')],
      data,
      **planted.owners(4),
    )
    algorithm = cfl.cfl(
      federation, testing.TO_THE_MEAN, **ALWAYS, max_clusters=4
    )

    @testing.jit
    def round_fn(state, late):
      def apply_participation(unused_participation, key, number, cohort, count):
        del key, number, count
        silent = (cohort.client == 2) & late
        return cohorts.excluded(cohort, silent), {}

      with mock.patch.object(
        participation, 'apply_participation', apply_participation
      ):
        return algorithm.round(state, data)

    state, _ = round_fn(
      testing.jit(algorithm.init)(jax.random.key(0), data), False
    )
    self.assertEqual(state.clients.cluster.tolist(), [0, 0, 1])
    own = state.params['output']['bias'][1]
    state, _ = round_fn(state, True)
    cluster = state.clients.cluster.tolist()
    self.assertEqual(cluster[2], 1)
    self.assertCountEqual(cluster[:2], [0, 2])
    np.testing.assert_array_equal(state.params['output']['bias'][1], own)

  def test_part_of_the_clients_is_refused(self):
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), planted.toy_data(5, 2), **planted.owners(8)
    )
    with self.assertRaisesRegex(
      ValueError, r'all clients .* cfl.*`clients_per_task`=1; set it to 0'
    ):
      cfl.cfl(
        federation, settings=round_settings.RoundSettings(clients_per_task=1)
      )

  def test_a_server_that_mixes_clusters_is_refused(self):
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), planted.toy_data(5, 2), **planted.owners(8)
    )
    mixing = servers.Server(lambda *_: (), lambda *args: args[1:3])
    with self.assertRaisesRegex(ValueError, 'got one that mixes owners'):
      cfl.cfl(
        federation,
        settings=round_settings.RoundSettings(server={'cluster': mixing}),
      )

  def test_another_federation_is_refused(self):
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), planted.toy_data(5, 2), **planted.owners(3)
    )
    with self.assertRaisesRegex(ValueError, r'8 clusters .max_clusters.*got 3'):
      cfl.cfl(federation)


if __name__ == '__main__':
  absltest.main()

"""MaT-FL against clusters found by scipy, its limits, and planted clusters."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy.cluster import hierarchy

from fmtl_jax import testing
from fmtl_jax.algorithms import fedper
from fmtl_jax.algorithms import isolated
from fmtl_jax.algorithms import mat_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings

import cases
import planted

FIXED_POINT = 'fedavg in each cluster, and clusters depend on the way there'
CLIENTS = 7
SIZES = np.array([5, 2, 7, 3, 5, 2, 7])
LOCAL = local_optimizers.LocalSgd(learning_rate=0.3, batch_size=2)


def _federation(encoder):
  """Seven clients of one task, an encoder of a layer, and a decoder."""
  return testing.toy_federation(
    (encoder, 'personal'), cases.toy_data(CLIENTS, 1, sizes=SIZES)
  )


@functools.cache
def _program(clients_per_task, weighting):
  """Rounds of any number of clusters from any start."""

  def run(state, clusters, rounds):
    federation, data = _federation('client')
    algorithm = mat_fl.mat_fl(
      federation,
      LOCAL,
      round_settings.RoundSettings(
        clients_per_task=clients_per_task, weighting={'client': weighting}
      ),
      clusters=clusters,
    )
    step = lambda _, carry: algorithm.round(carry[0], data)
    first = algorithm.round(state, data)
    state, metrics = jax.lax.fori_loop(1, rounds, step, first)
    return state.params, algorithm.relations(state), metrics['client']

  return testing.jit(run)


def _start(seed=1, shared=False):
  federation, data = _federation('client')
  algorithm = mat_fl.mat_fl(federation, LOCAL)
  state = cases.start(algorithm, data, seed)
  if shared:
    state.params.update(
      jax.tree.map(lambda x: np.repeat(x[:1], CLIENTS, 0), state.params)
    )
  return state


def _run(clusters, clients=0, weighting='examples', rounds=1, **start):
  run = _program(clients, weighting)
  params, relations, last = run(
    _start(**start), np.int32(clusters), np.int32(rounds)
  )
  rows = lambda layer: np.concatenate(
    [np.reshape(x, (CLIENTS, -1)) for x in jax.tree.leaves(params[layer])],
    1,
    dtype=np.float64,
  )
  return rows('layer_0'), rows('layer_1'), np.asarray(relations), last


def _found(encoders, count):
  """Clusters by scipy: `[N]`."""
  far = encoders - encoders.mean(0)
  tree = hierarchy.linkage(far, 'average', 'cosine')
  return hierarchy.fcluster(tree, count, 'maxclust')


def _shares(cluster, weights):
  same = np.equal.outer(cluster, cluster) * weights
  return same / same.sum(1, keepdims=True)


class MatFlTest(parameterized.TestCase):
  @parameterized.product(
    clusters=(2, 3), weighting=('examples', 'uniform'), seed=(1, 2)
  )
  def test_a_round_averages_within_clusters(self, clusters, weighting, seed):
    """Whatever local training does: with as many clusters it is alone."""
    alone, heads, identity, _ = _run(CLIENTS, weighting=weighting, seed=seed)
    np.testing.assert_array_equal(identity, np.eye(CLIENTS))
    weights = SIZES if weighting == 'examples' else np.ones(CLIENTS)
    shares = _shares(_found(alone, clusters), weights)
    found = _run(clusters, weighting=weighting, seed=seed)
    np.testing.assert_allclose(found[2], shares, rtol=1e-5)
    np.testing.assert_allclose(found[0], shares @ alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[1], heads)  # They stay at clients.

  def test_as_many_clusters_as_clients_are_isolated_training(self):
    alone, heads, _, _ = _run(CLIENTS, rounds=2)
    federation, data = _federation('personal')
    algorithm = isolated.isolated(federation, LOCAL)
    start = cases.start(algorithm, data)
    start.params.update(_expanded(_start().params, start.params))
    views = cases.run(algorithm, data, 2, start, views=True).views
    for layer, expected in (('layer_0', alone), ('layer_1', heads)):
      leaves = jax.tree.leaves(views[layer])
      rows = np.concatenate([np.reshape(x, (CLIENTS, -1)) for x in leaves], 1)
      np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)

  def test_one_cluster_is_fedavg_on_the_encoder(self):
    encoders, heads, _, _ = _run(1, rounds=3, shared=True)
    federation, data = _federation('common')
    algorithm = fedper.fedper(federation, LOCAL)
    start = cases.start(algorithm, data)
    mine = _start(shared=True).params
    start.params['layer_0'] = jax.tree.map(lambda x: x[0], mine['layer_0'])
    start.params['layer_1'] = mine['layer_1']
    params = cases.run(algorithm, data, 3, start).state.params
    for layer, found in (('layer_0', encoders), ('layer_1', heads)):
      rows = np.concatenate(
        [
          np.reshape(x, (CLIENTS if layer == 'layer_1' else 1, -1))
          for x in jax.tree.leaves(params[layer])
        ],
        1,
      )
      expected = np.broadcast_to(rows, found.shape)
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  def test_who_takes_no_part_keeps_its_encoder_and_is_in_no_cluster(self):
    alone, _, _, clients = _run(CLIENTS, 4)
    encoders, _, relations, _ = _run(2, 4)
    drawn = np.isin(np.arange(CLIENTS), clients)
    start = jax.tree.leaves(_start().params['layer_0'])
    start = np.concatenate([np.reshape(x, (CLIENTS, -1)) for x in start], 1)
    np.testing.assert_array_equal(encoders[~drawn], start[~drawn])
    shares = _shares(_found(alone[drawn], 2), SIZES[drawn])
    expected = shares @ alone[drawn]
    np.testing.assert_allclose(encoders[drawn], expected, 1e-4, 1e-6)
    np.testing.assert_array_equal(relations[drawn][:, ~drawn], 0)
    np.testing.assert_allclose(
      relations[np.ix_(drawn, drawn)], shares, rtol=1e-5
    )

  def test_a_broken_encoder_is_in_no_cluster(self):
    state = _start()
    broken = np.array(state.params['layer_0']['bias'])
    broken[3] = np.nan
    state.params['layer_0']['bias'] = broken
    args = np.int32(2), np.int32(1)
    params, relations, _ = _program(0, 'examples')(state, *args)
    whole = np.isfinite(np.asarray(params['layer_0']['kernel'])).all((1, 2))
    np.testing.assert_array_equal(whole, np.arange(CLIENTS) != 3)
    np.testing.assert_array_equal(relations[3], np.arange(CLIENTS) == 3)

  def test_planted_clusters_are_found(self):
    [(accuracy, _, views)] = planted.runs(
      mat_fl.mat_fl, types=('client',), count=0
    )
    kernels = np.asarray(views['layer_0']['kernel'])[..., 0]
    self.assertLen(np.unique(kernels.round(5), axis=0), 2)
    same = np.abs(kernels[:, None] - kernels).max(-1) < 1e-5
    np.testing.assert_array_equal(
      same, np.equal.outer(planted.TRUTH, planted.TRUTH)
    )
    self.assertGreater(
      accuracy.mean(), planted.accuracy_of_one_model().mean() + 0.2
    )

  def test_encoders_are_sent_there_and_back_and_decoders_are_not(self):
    federation, _ = _federation('client')
    messages = mat_fl.mat_fl(federation).messages()
    for message in (messages.up, messages.down):
      found = communication.message_bytes(federation, message)
      self.assertEqual(found, ({'client': 4 * (3 * 4 + 4)}, {}))

  def test_without_layers_of_clients_it_relates_none(self):
    federation, _ = _federation('common')
    self.assertIsNone(mat_fl.mat_fl(federation).relations)


def _expanded(params, other):
  """The same values in the shapes of another state."""
  return jax.tree.map(lambda x, y: np.reshape(x, y.shape), params, other)


if __name__ == '__main__':
  absltest.main()

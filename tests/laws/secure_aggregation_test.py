"""Laws of secure aggregation: it is a sum, and only that is seen."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.rounds import round_settings
from fmtl_jax.secure_aggregation import client as client_lib
from fmtl_jax.secure_aggregation import masks
from fmtl_jax.server import aggregators

from tests import needs

import cases


def _sent(count, size=11):
  """Packed updates of clients of different weights."""
  rng = np.random.default_rng(count)
  point = secure_aggregation.FixedPoint(2.0, count, 5.0)
  return {
    3 * client: point.pack(
      secure_aggregation.clipped(
        rng.normal(size=size).astype(np.float32), point.clip
      ),
      rng.uniform(0, 5),
    )
    for client in range(count)
  }


@needs.cryptography
class MaskedSumTest(parameterized.TestCase):
  """The masked sum is the plain one, bit for bit."""

  @parameterized.parameters((3, None), (10, None), (10, 4), (100, 6))
  def test_if_all_stay(self, count, neighbours):
    sent = _sent(count)
    protocol = secure_aggregation.two_thirds(count, neighbours)
    found = secure_aggregation.simulate('r', sent, protocol)
    plain = secure_aggregation.sum_mod([*sent.values()])
    np.testing.assert_array_equal(found.values, plain)
    self.assertEqual(found.survivors, tuple(sorted(sent)))

  @parameterized.product(
    stage=secure_aggregation.STAGES, count=(4, 7), dropped=(1, 2, 3)
  )
  def test_as_many_drop_out_as_the_threshold_allows(
    self, stage, count, dropped
  ):
    sent = _sent(count)
    # More than half of those who are left at the first stage.
    threshold = max(count - dropped, count // 2 + 1)
    protocol = secure_aggregation.Protocol(threshold)
    gone = [*sent][:dropped]
    run = lambda: secure_aggregation.simulate(
      'r', sent, protocol, {stage: gone}
    )
    if count - dropped < threshold:
      with self.assertRaisesRegex(ValueError, f'at least {threshold} clients'):
        run()
      return
    in_sum = {**sent}
    if stage != 'unmask':
      in_sum = {c: x for c, x in sent.items() if c not in gone}
    plain = secure_aggregation.sum_mod([*in_sum.values()])
    found = run()
    np.testing.assert_array_equal(found.values, plain)
    self.assertEqual(found.survivors, tuple(in_sum))

  @parameterized.parameters((10, None, 6, 1), (30, 8, 5, 1))
  def test_some_drop_out_at_every_stage(self, count, neighbours, least, each):
    sent = _sent(count)
    clients = [*sent]
    dropouts = {
      stage: clients[i * each : (i + 1) * each]
      for i, stage in enumerate(secure_aggregation.STAGES)
    }
    protocol = secure_aggregation.Protocol(least, neighbours)
    found = secure_aggregation.simulate('r', sent, protocol, dropouts)
    plain = [sent[client] for client in clients[3 * each :]]
    np.testing.assert_array_equal(
      found.values, secure_aggregation.sum_mod(plain)
    )


@needs.cryptography
class HiddenTest(parameterized.TestCase):
  """A masked message is uniform, whatever it masks."""

  def _masked(self, values):
    """What each of three clients sends, of the same numbers."""
    clients = [client_lib.Client(i, 2) for i in range(3)]
    protocol = secure_aggregation.Protocol(2)
    server = secure_aggregation.Server('r', protocol, len(values))
    sent = server.rosters([c.advertise('r') for c in clients])
    sent = server.deliveries([c.share(sent[c.client_id]) for c in clients])
    return [c.mask(sent[c.client_id], values).values for c in clients]

  @parameterized.parameters(0, 1, 2**32 - 1)
  def test_bytes_are_uniform(self, value):
    for data in self._masked(np.full(2**16, value, np.uint32)):
      words = np.frombuffer(data, np.uint8).reshape(-1, 4)
      for place in range(4):
        counts = np.bincount(words[:, place], minlength=256)
        squared = np.square(counts - 256).sum() / 256
        # Chi-square of 255 degrees: one in a million is above 374 or below
        # 159.
        self.assertBetween(squared, 159, 374)

  def test_no_two_messages_are_alike(self):
    values = np.zeros(64, np.uint32)
    found = [*self._masked(values), *self._masked(values)]
    self.assertLen({*found}, 6)

  def test_the_masks_of_neighbours_alone_are_not_seen(self):
    """Without a client's own mask, the others' would give its numbers."""
    clients = [client_lib.Client(i, 2) for i in range(3)]
    protocol = secure_aggregation.Protocol(2)
    server = secure_aggregation.Server('r', protocol, 8)
    sent = server.rosters([c.advertise('r') for c in clients])
    sent = server.deliveries([c.share(sent[c.client_id]) for c in clients])
    run = clients[0]._run
    data = clients[0].mask(sent[0], np.zeros(8, np.uint32)).values
    masked = np.frombuffer(data, '<u4').copy()
    of_pairs = [
      client_lib.mask_key(run.mask_pair, run.public[other], 'r', 0, other)
      for other in (1, 2)
    ]
    masks.apply(masked, (), of_pairs)
    self.assertGreater(np.count_nonzero(masked), 0)
    masks.apply(masked, (), [run.own_key])
    np.testing.assert_array_equal(masked, 0)


class CompiledSumTest(parameterized.TestCase):
  """The sums of a compiled round are those of the protocol, bit for bit."""

  def _clients(self):
    rng = np.random.default_rng(0)
    updates = {'head': rng.normal(size=(9, 2, 4)).astype(np.float32)}
    owner = np.tile([[0, 1], [1, 0], [0, 2]], (3, 1)).astype(np.int32)
    weights = rng.uniform(0.1, 3, (9, 2)).astype(np.float32)
    weights[0] = 0
    updates['head'][0] = np.nan
    return updates, owner, weights

  def _compiled(self, point, split):
    """Sums over parts of the cohort, as devices add them."""
    updates, owner, weights = self._clients()
    reducer = secure_aggregation.reducer(point)
    params = {'head': np.zeros((3, 4), np.float32)}

    def run(updates, owner, weights):
      total = reducer.init(params, 3)
      for part in (slice(0, split), slice(split, None)):
        clients = aggregators.Clients((), weights[part], owner[part], 3)
        parts = jax.tree.map(lambda x, part=part: x[part], updates)
        total = reducer.add(total, parts, clients, params)
      clients = aggregators.Clients((), weights, owner, 3)
      return total, reducer.finish(None, total, (), clients)

    return testing.jit(run)(updates, owner, weights)

  def test_sums_are_the_plain_ones_in_any_order(self):
    point = secure_aggregation.FixedPoint(10.0, 9, 2.0)
    updates, owner, weights = self._clients()
    (sums, of_weights, _), _ = self._compiled(point, 4)
    again, found, _ = self._compiled(point, 7)[0]
    testing.assert_trees_equal((again, found), (sums, of_weights))
    numbers, whole = point.quantize(updates['head'], weights)
    for group in range(3):
      of_group = owner == group
      plain = secure_aggregation.sum_mod([*numbers[of_group]])
      np.testing.assert_array_equal(sums['head'][group], plain)
      self.assertEqual(of_weights[group], whole[of_group].sum(dtype=np.uint32))

  @needs.cryptography
  def test_means_are_those_of_masked_messages(self):
    updates, owner, weights = self._clients()
    weights = np.minimum(weights, 2)
    found = secure_aggregation.aggregate(
      updates,
      {'head': 'task'},
      {'task': owner},
      {'task': weights},
      clip=10.0,
      max_weight=2.0,
    )
    sizes = [np.sum((owner == group) & (weights > 0)) for group in range(3)]
    for group, size in enumerate(sizes):
      point = secure_aggregation.FixedPoint(10.0, int(size), 2.0)
      (sums, of_weights, _), _ = self._compiled(point, 4)
      outcome = found['task', group].outcome
      np.testing.assert_array_equal(outcome.values[:-1], sums['head'][group])
      self.assertEqual(outcome.values[-1], of_weights[group])

  @parameterized.parameters('scan', 'vmap', 'chunk:2')
  def test_a_round_has_them(self, execution):
    labels, tasks = [[0.25], [0.5], [-1.0], [0.125], [9.0]], (0, 0, 1, 1, 1)
    federation, data = testing.mean_estimation(labels, tasks, 'task')
    point = secure_aggregation.FixedPoint(1.0, 3)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(
        weighting={'task': 'uniform'},
        reducer={'task': secure_aggregation.reducer(point)},
        placement=round_settings.Placement(execution=execution),
      ),
    )
    state = cases.run(algorithm, data).state
    found = np.ravel(jax.tree.leaves(state.params))
    # The last client's update is clipped to a norm of one.
    expected = [0.375, (-1 + 0.125 + 1) / 3]
    np.testing.assert_allclose(found, expected, atol=3e-6)

  def test_an_update_that_is_not_finite_is_not_sent(self):
    point = secure_aggregation.FixedPoint(10.0, 9, 2.0)
    reducer = secure_aggregation.reducer(point)
    clients = aggregators.Clients(
      (), np.ones((2, 1), np.float32), np.zeros((2, 1), int), 1
    )
    params = {'w': np.zeros((1, 3), np.float32)}
    updates = {'w': np.array([[[1, np.inf, 0]], [[1, 2, 3]]], np.float32)}

    def run(updates):
      total = reducer.add(reducer.init(params, 1), updates, clients, params)
      return (
        reducer.finish(None, total, (), clients),
        reducer.counted(total, (), clients),
      )

    mean, counted = testing.jit(run)(updates)
    np.testing.assert_allclose(mean['w'], [[1, 2, 3]], atol=1e-5)
    np.testing.assert_array_equal(counted, [2])


if __name__ == '__main__':
  absltest.main()

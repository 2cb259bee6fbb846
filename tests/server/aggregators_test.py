"""Laws of aggregators: what is added up client by client, by closed forms."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.execution import low_rank
from fmtl_jax.rounds import aggregation
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators
from fmtl_jax.server import robust_aggregators

KEY = jax.random.key(0)
WEIGHTS = np.array([1.0, 2.0, 0.0, 3.0, 1.0], np.float32)
OWNER = np.array([0, 2, 1, 2, 2], np.int32)
Placement = round_settings.Placement
_everyone = testing.jit(cohorts.everyone)


def _clients(weights, owner=None, num_owners=None):
  cohort = _everyone(testing.toy_data(len(weights), 2))
  return aggregators.Clients(
    cohort,
    jnp.asarray(weights),
    None if owner is None else jnp.asarray(owner),
    num_owners,
  )


def _updates(shape=(5,), seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *more: rng.normal(size=shape + more).astype(np.float32)
  return {'kernel': draw(3, 2), 'bias': draw(2), 'other': None}


def _params(updates, num_owners=None, lead=1):
  shape = () if num_owners is None else (num_owners,)
  zeros = lambda x: np.zeros(shape + x.shape[lead:], np.float32)
  return jax.tree.map(zeros, updates)


def _run(aggregator, updates, clients, params, blocks):
  """Adds the clients up in blocks, and finishes; one program."""

  def run(key, updates, params, cohort, weights, owner):
    clients_ = clients._replace(cohort=cohort, weights=weights, owner=owner)
    total, first = aggregator.init(params, clients.num_owners), 0
    for size in blocks:
      rows = slice(first, first + size)
      take = lambda tree, rows=rows: jax.tree.map(lambda x: x[rows], tree)
      some = clients_._replace(
        cohort=take(cohort), weights=weights[rows], owner=take(owner)
      )
      total = aggregator.add(total, take(updates), some, params)
      first += size
    held = updates if aggregator.one_by_one else ()
    return aggregator.finish(key, total, held, clients_)

  return testing.jit(run)(
    KEY, updates, params, clients.cohort, clients.weights, clients.owner
  )


def _rounds(algorithm, data, count):
  """The state after some rounds, by one program."""

  @testing.jit
  def run(key, data):
    step = lambda state, _: (algorithm.round(state, data)[0], None)
    return jax.lax.scan(step, algorithm.init(key, data), length=count)[0]

  return run(KEY, data)


class StreamedClippingTest(parameterized.TestCase):
  """Adding clipped updates up is reducing all of them."""

  @parameterized.product(blocks=[(1, 1, 1, 1, 1), (2, 3)], owned=[False, True])
  def test_it_is_the_reducer(self, blocks, owned):
    updates, owner = _updates(), OWNER if owned else None
    count = 3 if owned else None
    clipping = robust_aggregators.norm_clipping(norm=2.0)
    clients = _clients(WEIGHTS, owner, count)
    params = _params(updates, count)
    found = _run(
      aggregators.clipped(clipping), updates, clients, params, blocks
    )
    wanted = testing.jit(
      lambda *args: robust_aggregators.by_owner(clipping, *args, count or 1)
    )(updates, clients.weights, clients.owner)
    testing.assert_trees_close(found, wanted)
    of_one = OWNER == 2 if owned else WEIGHTS >= 0
    plain = np.average(updates['kernel'][of_one], 0, WEIGHTS[of_one])
    found = np.asarray(found['kernel'])
    found = found[2] if owned else found
    difference = np.abs(plain - found).max()
    self.assertGreater(float(difference), 1e-2)  # Something was clipped.

  def test_copies_of_slots_have_norms_of_their_own(self):
    updates = _updates((2, 2))
    for leaf in jax.tree.leaves(updates):
      leaf[0, 1] *= 100
    weights = jnp.array([[1.0, 1.0], [0.0, 2.0]])
    owner = jnp.array([[0, 1], [0, 1]])
    clients = _clients(np.ones(2))._replace(
      weights=weights, owner=owner, num_owners=2
    )
    params = _params(updates, 2, 2)
    clipping = robust_aggregators.norm_clipping(norm=5.0)
    found = _run(
      aggregators.clipped(clipping), updates, clients, params, (1, 1)
    )
    norm = np.sqrt(
      sum((np.asarray(x[0, 1]) ** 2).sum() for x in jax.tree.leaves(updates))
    )
    self.assertGreater(norm, 5)
    for name in ('kernel', 'bias'):
      x = np.asarray(updates[name])
      second = (x[0, 1] * 5 / norm + 2 * x[1, 1]) / 3
      np.testing.assert_allclose(found[name][0], x[0, 0], rtol=1e-5)
      np.testing.assert_allclose(found[name][1], second, rtol=1e-4, atol=1e-6)

  def test_an_update_that_is_not_finite_was_not_sent(self):
    updates = _updates()
    updates['bias'][1, 0], updates['kernel'][4, 0, 1] = np.nan, np.inf
    clipping = robust_aggregators.norm_clipping(norm=2.0)
    clients = _clients(WEIGHTS)
    found = _run(
      aggregators.clipped(clipping),
      updates,
      clients,
      _params(updates),
      (2, 3),
    )
    without = jax.tree.map(lambda x: np.delete(x, (1, 4), 0), updates)
    wanted = testing.jit(clipping)(without, np.delete(WEIGHTS, (1, 4)))
    testing.assert_trees_close(found, wanted)

  def test_nobody_left_is_no_update(self):
    updates = jax.tree.map(lambda x: np.full_like(x, np.nan), _updates())
    found = _run(
      aggregators.clipped(robust_aggregators.norm_clipping()),
      updates,
      _clients(WEIGHTS),
      _params(updates),
      (5,),
    )
    for leaf in jax.tree.leaves(found):
      np.testing.assert_array_equal(leaf, 0)

  @parameterized.parameters('examples', 'uniform', 'task_balanced')
  def test_a_round_holds_updates_only_where_weights_depend_on_them(
    self, weighting
  ):
    federation, _ = testing.toy_federation()
    settings = round_settings.RoundSettings(
      weighting={'common': weighting},
      reducer={'common': robust_aggregators.norm_clipping()},
    )
    built = aggregation.Aggregation(federation, settings)
    view = jax.eval_shape(
      lambda: federation.broadcast(
        federation.init_params(KEY), {'task': jnp.zeros(1, jnp.int32)}
      )
    )
    _, held = built.split(view)
    self.assertEqual(bool(held), weighting == 'task_balanced')
    self.assertEqual(
      'common' in built.takes_factors, weighting != 'task_balanced'
    )

  def test_factored_kernels_are_clipped(self):
    """Rounds in factored form are those in the ordinary one."""

    def run(execution):
      federation, data = testing.toy_federation(data=testing.toy_data(5, 3))
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(
          optimizer=local_optimizers.Sgd(weight_decay=0.1), batch_size=2
        ),
        round_settings.RoundSettings(
          reducer=dict.fromkeys(
            ('common', 'task'), robust_aggregators.norm_clipping(norm=0.05)
          ),
          placement=Placement(execution=execution, low_rank_below=np.inf),
        ),
      )
      if execution == 'low_rank':
        _, reasons = algorithm.form(data)
        self.assertIn('factored: its rows', reasons['layer_0/kernel'])
        self.assertStartsWith(reasons['layer_0/kernel'], 'factored')
      return _rounds(algorithm, data, 2).params

    testing.assert_trees_close(run('low_rank'), run('scan'))


class FactoredNormTest(parameterized.TestCase):
  @parameterized.parameters((None, ()), ((3,), (2,)))
  def test_it_is_that_of_the_product(self, owners, slots):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    lead = (4, *slots)
    base = draw(*(owners or ()), 6, 5)
    owner = None
    if owners:
      owner = rng.integers(0, 3, lead).astype(np.int32)
    update = low_rank.Update(
      factors=low_rank.Factors(draw(*lead, 7, 6), draw(*lead, 7, 5)),
      coefficients=draw(*lead, 7),
      growth=draw(*lead),
    )
    found = testing.jit(low_rank.squared_norm)(update, owner, base)
    kernels = base if owner is None else base[owner]
    inputs, grads = update.factors
    dense = update.growth[..., None, None] * kernels + np.einsum(
      '...ni,...n,...nj->...ij', inputs, update.coefficients, grads
    )
    wanted = np.square(dense).sum((-2, -1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


class OwnAggregatorTest(parameterized.TestCase):
  """A user's aggregator is a value in the settings of a round."""

  @parameterized.parameters('scan', 'chunk:2')
  def test_the_mean_of_signs(self, execution):
    def add(total, updates, clients, unused_params):
      return jax.tree.map(
        lambda x, sum_: federation_lib.owner_sum(
          jnp.sign(x), clients.weights, clients.owner, sum_
        ),
        updates,
        total,
      )

    signs = aggregators.mean()._replace(add=add, takes_factors=False)
    federation, data = testing.mean_estimation(
      [[1.0, 3.0], [-5.0], [7.0]], (0, 0, 1), 'common'
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(
        reducer={'common': signs}, placement=Placement(execution=execution)
      ),
    )
    state = _rounds(algorithm, data, 1)
    # Two examples up, one down, one up.
    np.testing.assert_allclose(state.params['output']['bias'], [0.5], 1e-6)


if __name__ == '__main__':
  absltest.main()

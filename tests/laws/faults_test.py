"""Laws of results that are not finite: found, and left out if asked for."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

import cases

LAYERS = ('common', 'task', 'personal')
BROKEN = (1, 4)


def _with_nan(
  data: dataset_lib.FederatedDataset, clients=BROKEN
) -> dataset_lib.FederatedDataset:
  """The data set in which an example of some clients holds NaN."""
  features = np.array(data.examples.features)
  for client in clients:
    features[data.partition.train.groups()[client][0], 0] = np.nan
  examples = dataclasses.replace(data.examples, features=features)
  return dataclasses.replace(data, examples=examples)


def _round(data, **settings):
  """State before and after a round, and its metrics."""
  federation, _ = testing.toy_federation(LAYERS, data)
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5),
      batch_size=2,
      keep_optimizer_state=True,
    ),
    round_settings.RoundSettings(**settings),
  )
  state = cases.start(algorithm, data)
  return state, *testing.jit(algorithm.round)(state, data)


class SkipTest(parameterized.TestCase):
  @parameterized.parameters(
    {
      'execution': 'vmap',
      'weighting': {'common': 'uniform'},
      'servers': {'common': cases.Server.sgd(0.5, momentum=0.9)},
    },
    {'execution': 'low_rank'},
    {'execution': 'chunk:3', 'median': ('common',)},
  )
  def test_rounds_are_those_of_the_others_alone(self, **settings):
    """In loops, those who are left out are not there."""
    cases.compare(
      LAYERS,
      _with_nan(cases.toy_data(7, 3, 2)),
      local=cases.Local(batch_size=2, epochs=2),
      skip_nonfinite=True,
      **settings,
    )

  def test_a_client_that_is_left_out_keeps_what_it_owns(self):
    data = _with_nan(cases.toy_data(7, 3))
    state, new, metrics = _round(data, skip_nonfinite=True)
    skipped = np.isin(np.arange(7), BROKEN)
    np.testing.assert_array_equal(metrics['skipped'], skipped)
    for old, own in zip(
      jax.tree.leaves((state.params['layer_2'], state.clients)),
      jax.tree.leaves((new.params['layer_2'], new.clients)),
      strict=True,
    ):
      same = np.equal(own, old).reshape(7, -1).all(1)
      np.testing.assert_array_equal(same, skipped)
    self.assertTrue(np.isfinite(metrics['loss_sum']).all())
    self.assertFalse(np.asarray(metrics['count'])[skipped].any())
    self.assertTrue(np.asarray(metrics['count'])[~skipped].all())

  def test_otherwise_one_client_spoils_the_layers_that_it_shares(self):
    data = _with_nan(cases.toy_data(7, 3), clients=(1,))
    _, new, metrics = _round(data)
    self.assertNotIn('skipped', metrics)
    task = int(data.partition.client_tasks[1, 0])
    spoiled = ~np.isfinite(new.params['layer_1']['kernel']).all((1, 2))
    np.testing.assert_array_equal(spoiled, np.arange(3) == task)
    self.assertFalse(np.isfinite(new.params['layer_0']['kernel']).any())

  def test_a_group_of_which_all_are_left_out_keeps_its_layers(self):
    data = cases.toy_data(6, 3)
    holders = [m for m in range(6) if data.partition.client_tasks[m, 0] == 2]
    state, new, _ = _round(_with_nan(data, holders), skip_nonfinite=True)
    for leaf, old in zip(
      jax.tree.leaves(new.params['layer_1']),
      jax.tree.leaves(state.params['layer_1']),
      strict=True,
    ):
      is_same = np.equal(leaf, old).reshape(3, -1).all(1)
      np.testing.assert_array_equal(is_same, [False, False, True])

  @parameterized.parameters(False, True)
  def test_padding_is_not_watched(self, skip_nonfinite):
    """It reads the rows of the last client, whatever they are."""
    data = cases.toy_data(7, 3)
    federation, _ = testing.toy_federation(LAYERS, data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      settings=round_settings.RoundSettings(
        skip_nonfinite=skip_nonfinite,
        participation=participation.Participation(dropout=1.0),
      ),
    )
    state = cases.start(algorithm, data)
    last = jax.tree.map(np.array, state.params['layer_2'])
    for leaf in jax.tree.leaves(last):
      leaf[-1] = np.nan
    state = dataclasses.replace(state, params=state.params | {'layer_2': last})
    _, metrics = testing.jit(algorithm.round)(state, data)
    for finite in metrics['finite'].values():
      self.assertTrue(np.asarray(finite).all())
    self.assertFalse(np.any(metrics.get('skipped', False)))

  def test_nothing_changes_where_all_is_finite(self):
    data = cases.toy_data(7, 3)
    _, plain, _ = _round(data)
    _, found, metrics = _round(data, skip_nonfinite=True)
    self.assertFalse(np.asarray(metrics['skipped']).any())
    testing.assert_trees_close(found, plain)


class FiniteTest(absltest.TestCase):
  def test_the_layer_type_is_named(self):
    federation, _ = cases.toy_federation(LAYERS)
    key = jax.random.key(0)
    shapes = jax.eval_shape(federation.init_fn, key)
    update = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    update['layer_1']['bias'] = np.float32([0.0, np.inf, 0.0, 0.0])
    finite = testing.jit(functools.partial(faults.finite, federation))
    found = finite(update, {'kept': np.float32(np.nan)})
    found = {name: bool(value) for name, value in found.items()}
    self.assertEqual(
      found, {'common': True, 'task': False, 'personal': True, 'state': False}
    )

  def test_an_unknown_policy_is_refused(self):
    with self.assertRaisesRegex(
      ValueError, "`policy` to be one of stop, .* got 'ignore'"
    ):
      faults.check('ignore')


class ClippedTest(parameterized.TestCase):
  def test_a_step_is_bounded_or_none(self):
    @testing.jit
    def changes(grads, norm):
      tx = faults.Clipped(optax.sgd, norm)(1.0)
      params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
      return tx.update(grads, tx.init(params), params)[0]

    for gradient, norm, step in (
      ((3.0, 4.0), 2.5, (-1.5, -2.0)),  # Norm 5, halved.
      ((3.0, 4.0), 10.0, (-3.0, -4.0)),
      ((0.0, 0.0), 2.5, (0.0, 0.0)),
      ((3.0, np.nan), 2.5, (0.0, 0.0)),
      ((np.inf, 1.0), 2.5, (0.0, 0.0)),
    ):
      grads = dict(zip('ab', np.float32(gradient)[:, None], strict=True))
      found = changes(grads, norm)
      np.testing.assert_allclose(
        [found['a'][0], found['b'][0]], step, rtol=1e-6
      )

  def test_clients_train_on_what_is_left_of_their_data(self):
    data = _with_nan(cases.toy_data(7, 3))
    federation, _ = testing.toy_federation(LAYERS, data)
    sgd = local_optimizers.Sgd()
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(
        optimizer=faults.Clipped(sgd, 1.0), batch_size=1
      ),
    )
    state = cases.start(algorithm, data)
    new, metrics = testing.jit(algorithm.round)(state, data)
    for leaf in jax.tree.leaves(new.params):
      self.assertTrue(np.isfinite(leaf).all())
    for finite in metrics['finite'].values():
      self.assertTrue(np.asarray(finite).all())
    moved = new.params['layer_2']['kernel'] - state.params['layer_2']['kernel']
    self.assertTrue((np.abs(moved).reshape(7, -1).max(1) > 0).all())

  def test_it_can_be_taken_off_and_put_on_another_one(self):
    sgd = local_optimizers.Sgd(momentum=0.5)
    inner, clip = faults.unclipped(faults.Clipped(sgd, 2.0))
    self.assertIs(inner, sgd)
    self.assertEqual(clip(optax.adam), faults.Clipped(optax.adam, 2.0))
    inner, clip = faults.unclipped(sgd)
    self.assertIs(inner, sgd)
    self.assertIs(clip(optax.adam), optax.adam)


if __name__ == '__main__':
  absltest.main()

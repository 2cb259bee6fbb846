"""Laws of rounds with language networks."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import metrics
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import per_fedavg
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import texts
from fmtl_jax.models import language
from fmtl_jax.rounds import round_settings

import cases

VOCABULARY, LENGTH = 6, 5
LOCAL = local_optimizers.LocalSgd(learning_rate=0.5, batch_size=3)


def _data(garbage=False):
  """Four users of two groups; the last window of each is padded.

  Args:
    garbage: Whether what stands behind the ends of texts are other tokens.
  """
  rng = np.random.default_rng(0)
  users = [rng.integers(1, VOCABULARY, size) for size in (23, 14, 31, 17)]
  found = texts.windows(users, LENGTH)
  mask = found.mask
  fill = rng.integers(1, VOCABULARY, mask.shape) if garbage else 0
  rows = [np.flatnonzero(found.text == user) for user in range(4)]
  return dataset_lib.FederatedDataset.create(
    features=np.where(mask, found.tokens, fill).astype(np.int32),
    labels={
      'tokens': np.where(mask, found.targets, fill)[:, None].astype(np.int32),
      'mask': mask[:, None],
    },
    tasks=[
      tasks_lib.tokens(name, VOCABULARY, (metrics.BITS,)) for name in 'ab'
    ],
    client_tasks=[0, 1, 1, 0],
    train=rows,
  )


@functools.cache
def _federation(name):
  make = language.stages(name, VOCABULARY, 3, (4,), 2, VOCABULARY)
  rules = [('output/.*', 'task'), ('.*', 'common')]
  return federation_lib.Federation.create(
    models.sequential(make), rules, _data()
  )


@functools.cache
def _trained(name, execution='scan', garbage=False):
  """Parameters before and after two rounds, where the second moves all."""
  settings = round_settings.RoundSettings(
    placement=round_settings.Placement(execution=execution)
  )
  algorithm = multi_task_fl.multi_task_fl(_federation(name), LOCAL, settings)
  start, state, _, _ = cases.run(algorithm, _data(garbage), 2, seed=1)
  return jax.device_get((start.params, state.params))


class LanguageRoundsTest(parameterized.TestCase):
  @parameterized.product(
    name=language.NAMES, execution=('vmap', 'chunk:2', 'low_rank')
  )
  def test_forms_agree(self, name, execution):
    testing.assert_trees_close(_trained(name), _trained(name, execution))

  @parameterized.parameters(*language.NAMES)
  def test_every_layer_moves(self, name):
    moved = jax.tree.map(
      lambda old, new: bool((old != new).any()), *_trained(name)
    )
    self.assertTrue(all(jax.tree.leaves(moved)), moved)

  @parameterized.parameters(*language.NAMES)
  def test_what_stands_behind_a_text_counts_for_nothing(self, name):
    testing.assert_trees_close(_trained(name), _trained(name, garbage=True))

  def test_second_derivatives_are_there(self):
    algorithm = per_fedavg.per_fedavg(
      _federation('gru'), LOCAL, order=per_fedavg.EXACT
    )
    _, state, _, _ = cases.run(algorithm, _data(), 1, seed=1)
    for leaf in jax.tree.leaves(state.params):
      self.assertTrue(jnp.isfinite(leaf).all())


if __name__ == '__main__':
  absltest.main()

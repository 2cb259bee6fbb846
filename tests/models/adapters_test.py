"""Laws of adapters as wrappers of networks."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.models import bert

SIZES = bert.Sizes(
  vocabulary=11, positions=6, width=6, heads=2, hidden=8, blocks=2
)
# Networks, their targets and the shape of an example.
NETWORKS = {
  'dense': (models.mlp((5,), (4, 3), 2), ('dense_.*/kernel',), (5,)),
  'convolution': (
    models.cnn((4, 4, 2), (3,), (4,), 2),
    ('conv_0/kernel', 'output/kernel'),
    (4, 4, 2),
  ),
  'attention': (bert.model(SIZES), ('block_1/attention/.*/kernel',), (6,)),
  'functions': (testing.mlp((5, 4, 2)), ('layer_1/kernel',), (5,)),
}


def _moved(params):
  """Parameters in which every factor B has other values than zero."""

  def move(path, leaf):
    if path[-1].key == adapters.B:
      return jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape)
    return leaf

  return jax.tree.map_with_path(move, params)


class WrapTest(parameterized.TestCase):
  @parameterized.parameters(*NETWORKS)
  def test_it_begins_as_the_network_and_merged_weights_are_its_own(self, name):
    model, targets, shape = NETWORKS[name]
    wrapped = models.Adapters(rank=2, alpha=3.0, targets=targets).wrap(model)
    x = jax.random.randint(jax.random.key(2), (3, *shape), 1, 9)

    def compute(key, x):  # One program: of eager steps each is compiled.
      params, plain = wrapped.init(key), model[0](key)
      moved = _moved(params)
      merged = adapters.merge_adapters(moved)
      same = adapters.merge_adapters(params)
      outputs = (
        *(model[1](plain, x), wrapped.apply(params, x)),
        *(model[1](merged, x), wrapped.apply(moved, x)),
      )
      return params, plain, same, merged, outputs

    with jax.default_matmul_precision('highest'):
      params, plain, same, merged, outputs = testing.jit(compute)(
        jax.random.key(1), x.astype(jnp.float32)
      )
    as_it_was, at_first, expected, found = outputs
    testing.assert_trees_close(at_first, as_it_was)
    testing.assert_trees_close(same, plain)
    testing.assert_trees_close(found, expected)
    self.assertGreater(np.abs(found - as_it_was).max(), 1e-3)
    changed = [
      path
      for path, new, old in zip(
        layer_types.paths(plain),
        *map(jax.tree.leaves, (merged, plain)),
        strict=True,
      )
      if np.abs(new - old).max() > 1e-4
    ]
    self.assertEqual(changed, [p for p, _ in adapters.pairs(params)])

  def test_a_kernel_gets_alpha_by_rank_times_the_product(self):
    model, targets, _ = NETWORKS['convolution']
    wrapped = models.Adapters(rank=2, alpha=3.0, targets=targets).wrap(model)
    init = testing.jit(lambda key: _moved(wrapped.init(key)))
    params = init(jax.random.key(1))
    kernel = np.asarray(params['conv_0']['kernel'])
    adapter = params['conv_0']['kernel_adapter']
    a, b = (np.asarray(adapter[leaf], np.float64) for leaf in ('a', 'b'))
    self.assertEqual((a.shape, b.shape), ((18, 2), (2, 3)))
    self.assertLessEqual(np.abs(a).max(), 1 / np.sqrt(18))
    self.assertGreater(np.abs(a).std(), 0.02)
    np.testing.assert_allclose(
      adapters.merge_adapters(params)['conv_0']['kernel'],
      kernel + (1.5 * a @ b).reshape(kernel.shape),
      rtol=1e-5,
    )

  def test_what_was_added_for_good_counts_and_is_merged(self):
    model, targets, shape = NETWORKS['dense']
    wrapped = models.Adapters(rank=1, targets=targets).wrap(model)
    with_delta = adapters.with_delta(wrapped)
    key, x = jax.random.key(1), jnp.ones((2, *shape))

    def compute(key):
      params = with_delta.init(key)
      before = with_delta.apply(params, x)
      without = wrapped.apply(wrapped.init(key), x)
      delta = params['dense_0']['kernel_adapter']['delta']
      params['dense_0']['kernel_adapter']['delta'] = delta + 0.5
      after = with_delta.apply(params, x)
      merged = adapters.merge_adapters(params)
      return before, without, after, model.apply(merged, x)

    before, without, after, merged = testing.jit(compute)(key)
    testing.assert_trees_close(before, without)
    self.assertGreater(np.abs(after - before).max(), 1e-2)
    testing.assert_trees_close(after, merged)

  def test_statistics_of_batches_are_written_beside_adapters(self):
    model = models.mlp((5,), (4,), 2, 'batch')
    wrapped = models.Adapters(targets=('dense_0/kernel',)).wrap(model)
    key, x = jax.random.key(1), jax.random.normal(jax.random.key(2), (6, 5))
    everything = lambda params: jax.tree.map(lambda _: True, params)
    found = []
    for one in (model, wrapped):
      train = lambda key, x, one=one: one.train_apply(
        *(one.init(key), x, jnp.ones(6, bool)),
        everything(jax.eval_shape(one.init, key)),
      )
      found.append(testing.jit(train)(key, x))
    testing.assert_trees_close(found[0][0], found[1][0])
    norms = [statistics['dense_0']['norm'] for _, statistics in found]
    testing.assert_trees_close(*norms)
    self.assertEmpty(jax.tree.leaves(found[1][1]['dense_0']['kernel_adapter']))

  @parameterized.parameters(
    ({'rank': 0}, 'Expected `rank` >= 1, got 0'),
    ({'alpha': 0.0}, 'Expected `alpha` > 0, got 0.0'),
    ({'targets': ('(',)}, r"expression in `targets`, got '\('"),
    ({'targets': ()}, "got '', which matches none of dense_0/bias"),
    ({'targets': ('dense_0/k',)}, "'dense_0/k', which matches none of"),
    ({'targets': ('dense_0/.*',)}, r"got 'dense_0/bias' of shape \[4\]"),
  )
  def test_what_is_no_adapter_is_refused(self, given, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      models.Adapters(**given).wrap(NETWORKS['dense'][0])


if __name__ == '__main__':
  absltest.main()

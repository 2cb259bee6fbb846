"""Laws of models: pure functions over plain dicts, chains of named stages."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.models import base
from fmtl_jax.models import layers

KEY = jax.random.key(3)
STATISTICS = ('mean', 'var')


class _Block(nnx.Module):
  """Modules in a module, and a constant that is no parameter."""

  def __init__(self, width, rngs):
    self.first = layers.Dense(width, 3, rngs=rngs)
    sequence = getattr(nnx, 'List', list)  # Newer versions ask for it.
    self.rest = sequence([nnx.Linear(3, 2, rngs=rngs)])
    self.factor = 10.0

  def __call__(self, x):
    return self.factor * self.rest[0](self.first(x))


def _stage(inputs, outputs, rngs):
  return layers.Dense(inputs, outputs, activation=jnp.tanh, rngs=rngs)


def _model():
  """Stages whose names are not in the order of the alphabet."""
  return base.sequential(
    {
      'stem': functools.partial(_stage, 3, 4),
      'middle': functools.partial(_stage, 4, 5),
      'answer': functools.partial(_stage, 5, 2),
    }
  )


@functools.cache
def _params():
  return testing.jit(_model().init)(KEY)


class FromNnxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.module_fn = functools.partial(_Block, 4)
    self.init, self.apply = base.from_nnx(self.module_fn)
    self.x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

  def test_parameters_are_plain_dicts_of_arrays(self):
    params = jax.jit(self.init)(KEY)
    self.assertEqual(
      jax.tree.map(jnp.shape, params),
      {
        'first': {'kernel': (4, 3), 'bias': (3,)},
        'rest': {0: {'kernel': (3, 2), 'bias': (2,)}},
      },
    )
    self.assertIs(type(params), dict)
    self.assertIs(type(params['first']), dict)
    for leaf in jax.tree.leaves(params):
      self.assertIsInstance(leaf, jax.Array)

  def test_it_computes_what_the_module_computes(self):
    module = self.module_fn(nnx.Rngs(KEY))
    params = self.init(KEY)
    np.testing.assert_allclose(
      self.apply(params, self.x), module(self.x), rtol=1e-5, atol=1e-6
    )

  def test_it_depends_on_the_parameters_alone(self):
    params = self.init(KEY)
    apply = jax.jit(self.apply)
    before = apply(params, self.x)
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(apply(zeros, self.x), np.zeros((6, 2)))
    np.testing.assert_array_equal(apply(params, self.x), before)
    twice = jax.tree.map(lambda leaf: 2 * leaf, params)
    np.testing.assert_allclose(
      apply(twice, self.x), 4 * before, rtol=1e-5, atol=1e-5
    )

  def test_a_trace_leaves_nothing_behind(self):
    params = jax.jit(self.init)(KEY)
    with jax.checking_leaks():
      jax.make_jaxpr(self.apply)(params, self.x)

  def test_another_key_is_another_draw(self):
    init = jax.jit(self.init)
    kernel = lambda key: init(key)['first']['kernel']
    np.testing.assert_array_equal(kernel(KEY), kernel(KEY))
    self.assertGreater(np.abs(kernel(KEY) - kernel(jax.random.key(4))).min(), 0)

  def test_it_can_be_mapped_over_parameters(self):

    @testing.jit
    def both(keys):
      params = jax.vmap(self.init)(keys)
      second = jax.tree.map(lambda leaf: leaf[1], params)
      outputs = jax.vmap(self.apply, (0, None))(params, self.x)
      return outputs[1], self.apply(second, self.x)

    actual, expected = both(jax.random.split(KEY, 3))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


class SequentialTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = _model()
    self.params = _params()
    self.x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)

  def test_stages_keep_their_order(self):
    names = ['stem', 'middle', 'answer']
    self.assertEqual([name for name, _ in self.model.stages], names)
    order = layer_types.use_order(self.model.apply, self.params, self.x)
    self.assertEqual(layer_types.modules(order), names)

  def test_it_is_the_chain_of_its_stages(self):
    x = self.x
    for name, apply in self.model.stages:
      x = apply(self.params[name], x)
    np.testing.assert_array_equal(self.model.apply(self.params, self.x), x)
    expected = self.x
    for name in 'stem', 'middle', 'answer':
      stage = self.params[name]
      expected = np.tanh(expected @ stage['kernel'] + stage['bias'])
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)

  def test_stages_have_draws_of_their_own(self):
    model = base.sequential(
      {name: functools.partial(_stage, 3, 3) for name in 'ab'}
    )
    params = testing.jit(model.init)(KEY)
    difference = params['a']['kernel'] - params['b']['kernel']
    self.assertGreater(np.abs(difference).min(), 0)


class TrainingTest(parameterized.TestCase):
  """Stages with statistics; `trained` says which parameters are."""

  def setUp(self):
    super().setUp()
    stage = functools.partial(layers.Dense, normalization='batch')
    self.model = base.sequential(
      {
        'first': lambda rngs: stage(3, 4, rngs=rngs),
        'second': lambda rngs: stage(4, 2, rngs=rngs),
      }
    )
    self.params = testing.jit(self.model.init)(KEY)
    rng = np.random.default_rng(0)
    self.x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

  def train(self, *frozen):
    """Outputs and statistics with leaves that are not trained."""
    trained = jax.tree.map_with_path(
      lambda path, _: jax.tree_util.keystr(path, simple=True) not in frozen,
      self.params,
    )
    return testing.jit(
      lambda params: self.model.train_apply(
        params, self.x, jnp.ones(6, bool), trained
      )
    )(self.params)

  def test_statistics_of_every_stage_are_returned(self):
    outputs, statistics = self.train()
    self.assertEqual(
      layer_types.paths(statistics),
      [f'{n}/norm/{leaf}' for n in ('first', 'second') for leaf in STATISTICS],
    )
    apart = np.abs(outputs - self.model.apply(self.params, self.x))
    self.assertGreater(apart.max(), 0.1)

  @parameterized.parameters('mean', 'var')
  def test_statistics_that_are_not_trained_are_used_as_they_are(self, name):
    outputs, statistics = self.train(f'firstnorm{name}')
    self.assertEqual(
      layer_types.paths(statistics), [f'second/norm/{n}' for n in STATISTICS]
    )
    stage = dict(self.model.stages)['first']
    inputs = stage(self.params['first'], self.x)
    expected, _ = self.model.train_stages['second'](
      self.params['second'], inputs, jnp.ones(6, bool)
    )
    np.testing.assert_allclose(outputs, expected, 1e-4, 1e-5)

  def test_frozen_scales_do_not_matter(self):
    outputs, statistics = self.train('firstnormscale', 'firstkernel')
    testing.assert_trees_equal((outputs, statistics), self.train())

  def test_the_rest_behind_a_prefix_keeps_its_statistics(self):
    labels = jax.tree.map(lambda _: 'common', self.params)
    labels['first'] = jax.tree.map(lambda _: 'pretrained', labels['first'])
    prefix, rest = base.split_prefix(self.model, labels)
    self.assertEqual(list(prefix.train_stages), ['first'])
    self.assertEqual(list(rest.train_stages), ['second'])


class SplitPrefixTest(parameterized.TestCase):
  @parameterized.parameters(
    (['pretrained', 'common', 'task'], 1),
    (['pretrained', 'pretrained', 'personal'], 2),
    (['common', 'pretrained', 'task'], 0),
    (['pretrained', 'common', 'pretrained'], 1),
  )
  def test_the_parts_are_the_whole(self, types, count):
    model, params = _model(), _params()
    names = [name for name, _ in model.stages]
    labels = {
      name: {'kernel': label, 'bias': label}
      for name, label in zip(names, types, strict=True)
    }
    prefix, rest = base.split_prefix(model, labels)
    self.assertEqual([name for name, _ in prefix.stages], names[:count])
    self.assertEqual([name for name, _ in rest.stages], names[count:])
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    np.testing.assert_array_equal(
      rest.apply(params, prefix.apply(params, x)), model.apply(params, x)
    )
    drawn = testing.jit(lambda key: (prefix.init(key), rest.init(key)))(KEY)
    self.assertCountEqual(drawn[0], names[:count])
    self.assertCountEqual(drawn[1], names[count:])
    testing.assert_trees_close(drawn[0] | drawn[1], params)

  def test_a_stage_that_is_trained_in_part_stays(self):
    model = _model()
    labels = {
      'stem': {'kernel': 'pretrained', 'bias': 'pretrained'},
      'middle': {'kernel': 'pretrained', 'bias': 'common'},
      'answer': {'kernel': 'task', 'bias': 'task'},
    }
    prefix, rest = base.split_prefix(model, labels)
    self.assertEqual([name for name, _ in prefix.stages], ['stem'])
    self.assertEqual([name for name, _ in rest.stages], ['middle', 'answer'])


if __name__ == '__main__':
  absltest.main()

"""Laws of networks: names, order and shapes of their stages."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.federation import layer_types


def _shapes(model):
  params = jax.eval_shape(model.init, jax.random.key(0))
  return {
    name: (params[name]['kernel'].shape, params[name]['bias'].shape)
    for name, _ in model.stages
  }


def _order(model, feature_shape):
  params = jax.eval_shape(model.init, jax.random.key(0))
  features = jax.ShapeDtypeStruct((1, *feature_shape), jnp.float32)
  order = layer_types.use_order(model.apply, params, features)
  return layer_types.modules(order)


class MlpTest(parameterized.TestCase):
  @parameterized.parameters(((6,),), ((2, 3),))
  def test_stages(self, feature_shape):
    model = models.mlp(feature_shape, [5, 4], 3)
    expected = {
      'dense_0': ((6, 5), (5,)),
      'dense_1': ((5, 4), (4,)),
      'output': ((4, 3), (3,)),
    }
    self.assertEqual(_shapes(model), expected)
    self.assertEqual(_order(model, feature_shape), list(expected))

  def test_more_than_ten_layers_stay_in_order(self):
    model = models.mlp((2,), [2] * 12, 1)
    names = [f'dense_{i}' for i in range(12)] + ['output']
    self.assertEqual(_order(model, (2,)), names)

  def test_without_hidden_layers_it_is_linear(self):
    model = models.mlp((4,), [], 2)
    self.assertEqual(_shapes(model), {'output': ((4, 2), (2,))})

  def test_relu_between_the_layers_and_none_at_the_end(self):
    model = models.mlp((2, 2), [8], 3)
    params = jax.jit(model.init)(jax.random.key(1))
    x = np.random.default_rng(0).normal(size=(9, 2, 2)).astype(np.float32)
    actual = jax.jit(model.apply)(params, x)
    hidden = np.maximum(x.reshape(9, 4) @ params['dense_0']['kernel'], 0)
    np.testing.assert_allclose(
      actual, hidden @ params['output']['kernel'], rtol=1e-5, atol=1e-6
    )
    self.assertLess(np.min(actual), 0)
    self.assertEqual(np.min(hidden), 0)


class CnnTest(parameterized.TestCase):
  def test_stages_for_images(self):
    model = models.cnn((9, 8, 3), [4, 6], [7], 5, window=3)
    expected = {
      'conv_0': ((3, 3, 3, 4), (4,)),
      'conv_1': ((3, 3, 4, 6), (6,)),
      'dense_0': ((2 * 2 * 6, 7), (7,)),
      'output': ((7, 5), (5,)),
    }
    self.assertEqual(_shapes(model), expected)
    self.assertEqual(_order(model, (9, 8, 3)), list(expected))

  def test_stages_for_time_series(self):
    model = models.cnn((13, 9), [4, 6], [], 5, window=5)
    expected = {
      'conv_0': ((5, 9, 4), (4,)),
      'conv_1': ((5, 4, 6), (6,)),
      'output': ((3 * 6, 5), (5,)),
    }
    self.assertEqual(_shapes(model), expected)
    self.assertEqual(_order(model, (13, 9)), list(expected))

  @parameterized.parameters(((6, 5, 2),), ((6, 2),))
  def test_it_is_the_chain_of_its_stages(self, feature_shape):
    model = models.cnn(feature_shape, [3], [4], 2)
    params = model.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *feature_shape)), jnp.float32)

    @testing.jit
    def outputs(params, x):
      space = 'HW'[: len(feature_shape) - 1]
      y = jax.lax.conv_general_dilated(
        x,
        params['conv_0']['kernel'],
        (1,) * len(space),
        'SAME',
        dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'),
      )
      window = (1, *(2,) * len(space), 1)
      y = jax.lax.reduce_window(
        jax.nn.relu(y), -jnp.inf, jax.lax.max, window, window, 'VALID'
      )
      y = y.reshape(2, -1) @ params['dense_0']['kernel']
      return (
        model.apply(params, x),
        jax.nn.relu(y) @ params['output']['kernel'],
      )

    actual, expected = outputs(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

  def test_an_unknown_convolution_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "`convolution` .*got 'fft'"):
      models.cnn((8, 8, 1), [2], [], 2, convolution='fft')

  @parameterized.parameters(
    ((8, 8, 1), 4, 3), ((16, 4, 1), 3, 2), ((5, 3), 3, 2)
  )
  def test_too_many_convolutions_are_an_error(self, shape, given, most):
    with self.assertRaisesRegex(
      ValueError, f'Expected at most {most} convolutions .* halves the axes'
    ):
      models.cnn(shape, [2] * given, [], 2)
    self.assertLen(models.cnn(shape, [2] * most, [], 2).stages, most + 1)


class LinearTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_it_is_one_product_and_perhaps_an_intercept(self, intercept):
    model = models.linear((2, 3), 4, intercept)
    layer = model.init(jax.random.key(0))['output']
    self.assertEqual('bias' in layer, intercept)
    layer |= {'bias': jnp.arange(4.0)} if intercept else {}
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    expected = x.reshape(5, 6) @ np.asarray(layer['kernel'])
    expected = expected + (np.arange(4.0) if intercept else 0)
    found = model.apply({'output': layer}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


NORM = {'scale', 'bias', 'mean', 'var'}


class NormalizationTest(parameterized.TestCase):
  @parameterized.parameters('mlp', 'cnn')
  def test_every_layer_but_the_output_has_one(self, name):
    if name == 'mlp':
      build = functools.partial(models.mlp, (5, 4, 2), [3, 4], 2)
      hidden = {'dense_0': 3, 'dense_1': 4}
    else:
      build = functools.partial(models.cnn, (5, 4, 2), [3], [4], 2)
      hidden = {'conv_0': 3, 'dense_0': 4}
    model, plain = build(normalization='batch'), build()
    self.assertIsNone(plain.train_apply)
    drawn = testing.jit(lambda key: (model.init(key), plain.init(key)))
    params, without = drawn(jax.random.key(0))
    for layer, width in hidden.items():
      norm = params[layer].pop('norm')
      self.assertEqual(
        jax.tree.map(jnp.shape, norm), dict.fromkeys(NORM, (width,))
      )
    testing.assert_trees_equal(params, without)
    self.assertEqual(_order(model, (5, 4, 2)), [*hidden, 'output'])

  def test_it_stands_before_the_activation_and_the_pooling(self):
    model = models.cnn((4, 2), [3], [], 2, normalization='batch')
    params = model.init(jax.random.key(1))
    norm = params['conv_0']['norm']
    norm['scale'], norm['bias'] = jnp.array([1.0, -2.0, 0.5]), jnp.ones(3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 2)), 'float32')
    is_example = jnp.arange(6) < 5
    trained = jax.tree.map(lambda _: True, params)
    outputs, statistics = model.train_apply(params, x, is_example, trained)
    y = jax.lax.conv_general_dilated(
      x[:5],
      params['conv_0']['kernel'],
      (1,),
      'SAME',
      dimension_numbers=('NHC', 'HIO', 'NHC'),
    )
    mean, var = y.mean((0, 1)), y.var((0, 1))
    z = (y - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias']
    z = np.maximum(z, 0).reshape(5, 2, 2, 3).max(2).reshape(5, -1)
    np.testing.assert_allclose(
      outputs[:5], z @ params['output']['kernel'], 1e-4, 1e-5
    )
    moved = statistics['conv_0']['norm']
    np.testing.assert_allclose(moved['mean'], 0.1 * mean, 1e-4, 1e-6)
    np.testing.assert_allclose(
      moved['var'], 0.9 + 0.1 * var * 20 / 19, 1e-4, 1e-6
    )
    self.assertLen(jax.tree.leaves(statistics), 2)

  def test_an_unknown_normalization_is_an_error(self):
    with self.assertRaisesRegex(
      ValueError, "`normalization` .* none, batch, got 'layer'"
    ):
      models.mlp((2,), [2], 1, normalization='layer')


if __name__ == '__main__':
  absltest.main()

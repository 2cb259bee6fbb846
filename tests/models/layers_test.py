"""Laws of layers: convolutions are XLA's own, padding is in no statistics."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.models import base
from fmtl_jax.models import layers

# Odd, even and unequal windows; odd and even axes of space; one and two.
CASES = (
  ((6,), (3,)),
  ((7,), (2,)),
  ((5,), (5,)),
  ((4, 6), (3, 3)),
  ((5, 4), (2, 3)),
)


def _array(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape).astype(np.float32))


def _reference(kernel, bias, x):
  """A convolution and a max pooling of XLA with ReLU in between."""
  space = 'HW'[: x.ndim - 2]
  y = jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1,) * len(space),
    padding='SAME',
    dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'),
  )
  window = (1, *(2,) * len(space), 1)
  return jax.lax.reduce_window(
    jax.nn.relu(y + bias), -jnp.inf, jax.lax.max, window, window, 'VALID'
  )


class ConvTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_it_equals_a_convolution_and_so_do_its_gradients(self, space, window):
    kernel, bias = _array(*window, 2, 3), _array(3, seed=1)
    x = _array(2, *space, 2, seed=2)
    cotangent = _array(2, *[n // 2 for n in space], 3, seed=3)

    def with_method(method):
      conv = layers.Conv(2, 3, window, method=method, rngs=nnx.Rngs(0))
      graph, _ = nnx.split(conv)

      def apply(kernel, bias, x):
        module = nnx.merge(graph, {'kernel': kernel, 'bias': bias})
        return module(x)

      return apply

    @testing.jit
    def outputs_and_gradients(kernel, bias, x):
      found = []
      for fn in (with_method('patches'), with_method('lax'), _reference):
        y, backward = jax.vjp(fn, kernel, bias, x)
        found.append((y, backward(cotangent)))
      return found

    actual, other, expected = outputs_and_gradients(kernel, bias, x)
    self.assertEqual(actual[0].shape, cotangent.shape)
    testing.assert_trees_close(actual, expected, rtol=1e-4, atol=1e-5)
    testing.assert_trees_close(other, expected, rtol=1e-4, atol=1e-5)

  def test_its_activation_may_be_another(self):
    conv = layers.Conv(1, 1, (1,), activation=jnp.negative, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.full((1, 1, 1), 2.0)
    x = jnp.array([1.0, 3.0, -2.0, 5.0])[None, :, None]
    y = np.asarray(testing.jit(lambda x: conv(x))(x))
    np.testing.assert_allclose(y[0, :, 0], [-2, 4])

  def test_its_kernel_keeps_the_variance(self):
    conv = layers.Conv(32, 64, (3, 3), rngs=nnx.Rngs(0))
    self.assertEqual(conv.kernel.shape, (3, 3, 32, 64))
    np.testing.assert_allclose(
      np.std(conv.kernel[...]), 1 / np.sqrt(9 * 32), rtol=0.03
    )
    np.testing.assert_array_equal(conv.bias[...], np.zeros(64))


class ConvolveTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_methods_agree_on_clients_with_weights_of_their_own(
    self, space, window
  ):
    x, kernels = _array(3, 2, *space, 2), _array(3, *window, 2, 4, seed=1)
    cotangent = _array(3, 2, *space, 4, seed=2)

    def value_and_gradients(method):
      convolve = jax.vmap(lambda x, kernel: layers.convolve(x, kernel, method))
      y, backward = jax.vjp(convolve, x, kernels)
      return y, backward(cotangent)

    both = testing.jit(
      lambda: (value_and_gradients('patches'), value_and_gradients('lax'))
    )
    testing.assert_trees_close(*both(), rtol=1e-4, atol=1e-5)

  @parameterized.parameters('cpu', 'gpu', 'tpu', 'another')
  def test_auto_is_a_method_on_every_platform(self, platform):
    method = layers.resolve_convolution('auto', platform)
    self.assertIn(method, ('patches', 'lax'))
    for method in ('patches', 'lax'):
      self.assertEqual(layers.resolve_convolution(method, platform), method)

  def test_an_unknown_method_is_told(self):
    with self.assertRaisesRegex(
      ValueError, "`convolution` .* auto, patches, lax, got 'fft'"
    ):
      layers.resolve_convolution('fft')


_patches = testing.jit(layers.patches, static_argnums=1)
_max_pool = testing.jit(layers.max_pool)


class PatchesTest(parameterized.TestCase):
  def test_a_window_stands_around_its_place(self):
    x = np.arange(1, 5, dtype=np.float32)[None, :, None]
    np.testing.assert_array_equal(
      np.asarray(_patches(x, (3,)))[0],
      [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]],
    )
    np.testing.assert_array_equal(
      np.asarray(_patches(x, (2,)))[0], [[1, 2], [2, 3], [3, 4], [4, 0]]
    )

  def test_places_come_before_channels(self):
    x = np.asarray(_array(1, 4, 5, 3))
    actual = np.asarray(_patches(x, (3, 3)))[0, 1, 2]
    np.testing.assert_array_equal(actual, x[0, 0:3, 1:4].reshape(-1))

  @parameterized.parameters(
    ((2, 7, 3), (4,)), ((3, 6, 5, 1), (5, 5)), ((2, 5, 4, 3), (3, 2))
  )
  def test_those_of_a_gpu_are_the_same_and_so_are_gradients(
    self, shape, window
  ):
    size = (*shape[:-1], int(np.prod(window)) * shape[-1])
    x, grads = _array(*shape), _array(*size, seed=1)
    form = lambda fn: jax.vjp(lambda x: fn(x, window), x)
    (expected, back), (actual, own_back) = map(
      form, (layers.patches, layers.gathered_patches)
    )
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(own_back(grads)[0], back(grads)[0])

  @parameterized.parameters(('gpu', True), ('cpu', False), ('tpu', False))
  def test_a_gpu_gathers_them(self, platform, gathers):
    with mock.patch.object(jax, 'default_backend', return_value=platform):
      made = jax.make_jaxpr(lambda x: layers.patches(x, (3, 3)))(
        _array(2, 5, 4, 3)
      )
    self.assertEqual('gather' in str(made), gathers)


class MaxPoolTest(parameterized.TestCase):
  def test_it_halves_the_axes_and_drops_odd_ends(self):
    x = np.float32([4.0, 1.0, -2.0, -3.0, 9.0])[None, :, None]
    y = np.asarray(_max_pool(x))
    np.testing.assert_array_equal(y[0, :, 0], [4, -2])
    x = _array(2, 5, 4, 3)
    expected = np.asarray(x)[:, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    np.testing.assert_array_equal(_max_pool(x), expected)


class DenseTest(parameterized.TestCase):
  def test_it_flattens_its_inputs(self):
    dense = layers.Dense(6, 4, rngs=nnx.Rngs(0))
    dense.bias[...] = bias = _array(4, seed=1)
    x = _array(5, 2, 3)
    np.testing.assert_allclose(
      dense(x),
      np.maximum(x.reshape(5, 6) @ np.asarray(dense.kernel[...]) + bias, 0),
      rtol=1e-5,
      atol=1e-6,
    )

  def test_an_output_layer_has_no_activation(self):
    dense = layers.Dense(2, 3, activation=layers.identity, rngs=nnx.Rngs(0))
    x = -_array(4, 2)
    np.testing.assert_allclose(
      dense(x), x @ dense.kernel[...], rtol=1e-5, atol=1e-6
    )
    self.assertLess(np.min(dense(x)), 0)

  def test_its_kernel_keeps_the_variance(self):
    dense = layers.Dense(64, 200, rngs=nnx.Rngs(0))
    self.assertEqual(dense.kernel.shape, (64, 200))
    np.testing.assert_allclose(np.std(dense.kernel[...]), 1 / 8, rtol=0.03)
    np.testing.assert_array_equal(dense.bias[...], np.zeros(200))


def _norm_values(features):
  """Parameters of a batch normalization, none at its first value."""
  values = np.asarray(_array(4, features, seed=5))
  return dict(zip(('scale', 'bias', 'mean', 'var'), values, strict=True)) | {
    'var': np.square(values[3]) + np.float32(0.5)
  }


def _train(params, x, is_example, cotangent):
  """Outputs, statistics and gradients by parameters and inputs."""
  train = base.Stage.from_nnx(lambda rngs: layers.BatchNorm(x.shape[-1])).train

  def outputs(params, x):
    return train(params, x, is_example)

  y, backward, statistics = jax.vjp(outputs, params, x, has_aux=True)
  return y, statistics, *backward(cotangent)


_train_jitted = testing.jit(_train)


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(((6, 3),), ((5, 4, 2, 3),))
  def test_training_is_what_numpy_computes(self, shape):
    params, x = _norm_values(3), _array(*shape)
    everybody = jnp.ones(shape[0], bool)
    y, statistics, *_ = _train_jitted(params, x, everybody, x)
    rows = np.asarray(x, np.float64).reshape(-1, 3)
    mean, count = rows.mean(0), len(rows)
    var = ((rows - mean) ** 2).mean(0)
    expected = (rows - mean) / np.sqrt(var + 1e-5)
    expected = expected * params['scale'] + params['bias']
    np.testing.assert_allclose(y.reshape(-1, 3), expected, 1e-4, 1e-5)
    moved = {
      'mean': 0.9 * params['mean'] + 0.1 * mean,
      'var': 0.9 * params['var'] + 0.1 * var * count / (count - 1),
    }
    expected = {'scale': None, 'bias': None} | moved
    testing.assert_trees_close(statistics, expected, 1e-4, 1e-5)

  @parameterized.parameters(((3, 2),), ((2, 4, 3),))
  def test_padding_changes_nothing_whatever_it_holds(self, shape):
    params, x = _norm_values(shape[-1]), _array(*shape)
    cotangent = _array(*shape, seed=1)

    def more(x, fill):
      found = np.full((len(x) + 3, *shape[1:]), fill, np.float32)
      found[1:-2] = x
      return found

    is_example = np.array([False] + [True] * shape[0] + [False] * 2)
    everybody = np.ones(shape[0], bool)
    alone = _train_jitted(params, x, everybody, cotangent)
    real = lambda x: np.asarray(x)[1:-2]
    for fill in (0.0, 7.0, np.nan, np.inf):
      padded = _train_jitted(
        params, more(x, fill), is_example, more(cotangent, 0)
      )
      found = real(padded[0]), *padded[1:3], real(padded[3])
      testing.assert_trees_close(found, alone, 1e-4, 1e-5)
      self.assertTrue(np.isfinite(padded[0]).all())  # Layers behind get it.
      np.testing.assert_array_equal(padded[3][0], 0)

  def test_statistics_have_no_gradient(self):
    params, x = _norm_values(3), _array(4, 3)
    *_, grads, _ = _train_jitted(
      params, x, np.ones(4, bool), _array(4, 3, seed=1)
    )
    for name in ('mean', 'var'):
      np.testing.assert_array_equal(grads[name], 0)
    for name in ('scale', 'bias'):
      self.assertGreater(np.abs(grads[name]).min(), 0)

  def test_a_single_example_has_no_variance(self):
    params, x = _norm_values(3), _array(4, 3)
    only = np.array([False, True, False, False])
    y, statistics, *grads = _train_jitted(
      params, x, only, np.ones((4, 3), np.float32)
    )
    np.testing.assert_allclose(y[1], params['bias'], 1e-6)
    np.testing.assert_array_equal(statistics['var'], params['var'])
    expected = 0.9 * params['mean'] + 0.1 * x[1]
    np.testing.assert_allclose(statistics['mean'], expected, 1e-5)
    for leaf in jax.tree.leaves(grads):
      self.assertTrue(np.isfinite(leaf).all())

  def test_without_an_example_statistics_stay(self):
    params, x = _norm_values(3), _array(4, 3)
    y, statistics, *_ = _train_jitted(params, x, np.zeros(4, bool), x)
    self.assertTrue(np.isfinite(y).all())
    for name in ('mean', 'var'):
      np.testing.assert_array_equal(statistics[name], params[name])

  def test_evaluation_uses_the_running_statistics(self):
    params, x = _norm_values(3), _array(4, 3)
    _, apply = base.from_nnx(lambda rngs: layers.BatchNorm(3))
    expected = (x - params['mean']) / np.sqrt(params['var'] + 1e-5)
    expected = expected * params['scale'] + params['bias']
    np.testing.assert_allclose(apply(params, x), expected, 1e-5, 1e-6)


if __name__ == '__main__':
  absltest.main()

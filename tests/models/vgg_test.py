"""Laws of VGG-Face: its stages, its size, and what it does to an image."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.models import vgg

NAMES = [
  *('conv1_1', 'conv1_2', 'conv2_1', 'conv2_2'),
  *('conv3_1', 'conv3_2', 'conv3_3', 'conv4_1', 'conv4_2', 'conv4_3'),
  *('conv5_1', 'conv5_2', 'conv5_3', 'fc6', 'fc7'),
]
KEY = jax.random.key(0)


def _tiny():
  return vgg.vgg_face(channels=(2, 3, 4, 5, 6), dense=7, size=64)


def _images(dtype=np.uint8, size=64):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (2, size, size, 3)).astype(dtype)


class PublishedSizeTest(parameterized.TestCase):
  """The true network is never computed here, only its shapes."""

  def setUp(self):
    super().setUp()
    self.model = vgg.vgg_face()
    self.params = jax.eval_shape(self.model.init, KEY)

  def test_it_has_the_published_number_of_parameters(self):
    sizes = (math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))
    self.assertEqual(sum(sizes), 134_260_544)

  @parameterized.parameters(
    ('conv1_1', (3, 3, 3, 64)),
    ('conv3_1', (3, 3, 128, 256)),
    ('conv5_3', (3, 3, 512, 512)),
    ('fc6', (7 * 7 * 512, 4096)),
    ('fc7', (4096, 4096)),
  )
  def test_kernels_have_the_published_shapes(self, name, shape):
    self.assertEqual(self.params[name]['kernel'].shape, shape)
    self.assertEqual(self.params[name]['bias'].shape, shape[-1:])

  @parameterized.parameters(jnp.uint8, jnp.float32)
  def test_a_face_has_4096_descriptors(self, dtype):
    images = jax.ShapeDtypeStruct((5, 224, 224, 3), dtype)
    outputs = jax.eval_shape(self.model.apply, self.params, images)
    self.assertEqual(outputs.shape, (5, 4096))
    self.assertEqual(outputs.dtype, jnp.float32)


class StagesTest(parameterized.TestCase):
  def test_stages_are_the_layers_with_parameters_in_order(self):
    model = _tiny()
    self.assertEqual([name for name, _ in model.stages], NAMES)
    params = jax.eval_shape(model.init, KEY)
    order = layer_types.use_order(model.apply, params, _images())
    self.assertEqual(layer_types.modules(order), NAMES)

  def test_a_pooling_belongs_to_the_last_stage_of_a_block(self):
    model = _tiny()
    x, params = _images(), jax.eval_shape(model.init, KEY)
    heights = {}
    for name, stage in model.stages[:-2]:
      x = jax.eval_shape(stage, params[name], x)
      heights[name] = x.shape[1]
    self.assertEqual(
      list(heights.values()), [64, 32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4, 2]
    )


class OutputsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = _tiny()
    self.params = testing.jit(self.model.init)(KEY)

  def test_bytes_and_floats_are_the_same_image(self):
    apply = testing.jit(self.model.apply)
    expected = apply(self.params, _images())
    np.testing.assert_array_equal(
      apply(self.params, _images(np.float32)), expected
    )
    self.assertGreater(np.max(expected), 0)

  def test_descriptors_end_in_relu(self):
    negated = self.params | {
      'fc7': jax.tree.map(jnp.negative, self.params['fc7'])
    }
    both = testing.jit(
      lambda: [self.model.apply(p, _images()) for p in (self.params, negated)]
    )()
    self.assertGreater(np.max(both[0]), 0)
    self.assertGreater(np.max(both[1]), 0)
    np.testing.assert_array_equal(np.minimum(*both), np.zeros((2, 7)))

  def test_the_mean_color_has_the_descriptors_of_the_biases(self):
    """Without biases it is zero everywhere, at the border too."""
    image = np.broadcast_to(vgg.MEAN, (1, 64, 64, 3))
    name, first = self.model.stages[0]
    np.testing.assert_array_equal(
      first(self.params[name], image), np.zeros((1, 64, 64, 2))
    )


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'channels': (2, 3)}, r'Expected 5 widths in channels.*got \(2, 3\)'),
    ({'size': 100}, 'size to be a multiple of 32.*got 100'),
    ({'size': 0}, 'size to be a multiple of 32.*got 0'),
  )
  def test_a_network_that_cannot_be_is_told(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      vgg.vgg_face(**settings)

  @parameterized.parameters((1, 32, 32, 3), (1, 64, 64, 1), (64, 64, 3))
  def test_images_of_another_shape_are_told(self, *shape):
    model = _tiny()
    params = jax.eval_shape(model.init, KEY)
    with self.assertRaisesRegex(ValueError, r'shape \[B, 64, 64, 3\].*resize'):
      jax.eval_shape(model.apply, params, jnp.zeros(shape))


if __name__ == '__main__':
  absltest.main()

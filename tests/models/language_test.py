"""Language networks: loops in NumPy, flax's cells, causality, steps."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.models import attention
from fmtl_jax.models import language
from fmtl_jax.models import recurrent
from fmtl_jax.models import sampling

TOKENS, LENGTH, BATCH = 7, 6, 3
INPUTS, FEATURES = 4, 5


def _network(name):
  """Of any name, small."""
  return language.stages(name, TOKENS, 4, (8, 8), 2, TOKENS)


@functools.cache
def _model(name):
  """A network's jitted apply, parameters away from zeros, and apply itself."""
  model = models.sequential(_network(name))

  def drawn():
    params = model.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
      leaf + 0.3 * jax.random.normal(key, leaf.shape)
      for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)

  params = testing.jit(drawn)()
  return testing.jit(model.apply), params, model.apply


def _tokens(seed=0, batch=BATCH):
  rng = np.random.default_rng(seed)
  return rng.integers(TOKENS, size=(batch, LENGTH)).astype(np.int32)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _lstm_loop(x, kernel, recurrent_kernel, bias):
  """A place after the other, in float64."""
  hidden = cell = np.zeros((x.shape[0], FEATURES))
  found = []
  for place in range(x.shape[1]):
    gates = x[:, place] @ kernel + hidden @ recurrent_kernel + bias
    i, f, g, o = np.split(gates, 4, axis=-1)
    cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
    hidden = _sigmoid(o) * np.tanh(cell)
    found.append(hidden)
  return np.stack(found, 1)


def _gru_loop(x, kernel, recurrent_kernel, bias, candidate_bias):
  hidden = np.zeros((x.shape[0], FEATURES))
  found = []
  for place in range(x.shape[1]):
    x_r, x_z, x_n = np.split(x[:, place] @ kernel + bias, 3, axis=-1)
    h_r, h_z, h_n = np.split(hidden @ recurrent_kernel, 3, axis=-1)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * (h_n + candidate_bias))
    hidden = (1 - z) * n + z * hidden
    found.append(hidden)
  return np.stack(found, 1)


def _values(*shapes):
  rng = np.random.default_rng(3)
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


class RecurrentTest(parameterized.TestCase):
  def _layer(self, name):
    """A layer with drawn parameters, and these by name."""
    gates = 4 if name == 'lstm' else 3
    kind = recurrent.Lstm if name == 'lstm' else recurrent.Gru
    layer = kind(INPUTS, FEATURES, nnx.Rngs(0))
    shapes = {
      'kernel': (INPUTS, gates * FEATURES),
      'recurrent': (FEATURES, gates * FEATURES),
      'bias': (gates * FEATURES,),
    }
    if name == 'gru':
      shapes['candidate_bias'] = (FEATURES,)
    values = dict(zip(shapes, _values(*shapes.values()), strict=True))
    for field, value in values.items():
      getattr(layer, field)[...] = jnp.asarray(value)
    return layer, values

  @parameterized.parameters(('lstm', _lstm_loop), ('gru', _gru_loop))
  def test_it_is_the_loop(self, name, loop):
    layer, values = self._layer(name)
    (x,) = _values((BATCH, LENGTH, INPUTS))
    expected = loop(x, *values.values())
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters('lstm', 'gru')
  def test_it_is_the_cell_of_flax(self, name):
    layer, values = self._layer(name)
    (x,) = _values((BATCH, LENGTH, INPUTS))
    if name == 'lstm':
      cell = nnx.OptimizedLSTMCell(INPUTS, FEATURES, rngs=nnx.Rngs(0))
      # Flax has the same gates, and the bias beside the state.
      cell.dense_i.kernel[...] = values['kernel']
      cell.dense_h.kernel[...] = values['recurrent']
      cell.dense_h.bias[...] = values['bias']
    else:
      cell = nnx.GRUCell(INPUTS, FEATURES, rngs=nnx.Rngs(0))
      cell.dense_i.kernel[...] = values['kernel']
      cell.dense_i.bias[...] = values['bias']
      cell.dense_h.kernel[...] = values['recurrent']
      # Its candidate has no bias beside the state.
      layer.candidate_bias[...] = jnp.zeros(FEATURES)

    def both():
      carry = cell.initialize_carry((BATCH, INPUTS), nnx.Rngs(0))
      found = []
      for place in range(LENGTH):
        carry, y = cell(carry, x[:, place])
        found.append(y)
      return layer(x), jnp.stack(found, 1)

    np.testing.assert_allclose(*testing.jit(both)(), rtol=1e-4, atol=1e-5)

  def test_at_each_place_it_is_the_product_and_so_are_its_gradients(self):
    x, kernel, weights = _values((BATCH, LENGTH, 3), (3, 4), (BATCH, LENGTH, 4))

    def both(product):
      f = lambda x, kernel: (weights * product(x, kernel)).sum()
      return testing.jit(jax.value_and_grad(f, (0, 1)))(x, kernel)

    testing.assert_trees_close(
      both(recurrent.at_each_place), both(lambda x, kernel: x @ kernel)
    )

  def test_the_gradient_of_cells_is_that_of_a_loop(self):
    arguments = [
      jnp.asarray(value)
      for value in _values(
        (LENGTH, BATCH, 4 * FEATURES),
        (FEATURES, 4 * FEATURES),
        (4 * FEATURES,),
      )
    ]
    (weights,) = _values((LENGTH, BATCH, FEATURES))

    def loop(inputs, kernel, bias):
      hidden = cell = jnp.zeros((BATCH, FEATURES))
      total = jnp.float32(0)
      for x, weight in zip(inputs, weights, strict=True):
        i, f, g, o = jnp.split(x + bias + hidden @ kernel, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        total += (weight * hidden).sum()
      return total

    def at_once(*arguments):
      return (weights * recurrent.recur(*arguments)).sum()

    both = lambda f: testing.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments)
    testing.assert_trees_close(both(at_once), both(loop))

  def test_the_gradient_of_gates_is_that_of_a_loop(self):
    arguments = [
      jnp.asarray(value)
      for value in _values(
        (LENGTH, BATCH, 3 * FEATURES),
        (FEATURES, 3 * FEATURES),
        (3 * FEATURES,),
        (FEATURES,),
      )
    ]
    (weights,) = _values((LENGTH, BATCH, FEATURES))

    def loop(inputs, kernel, bias, candidate_bias):
      hidden, total = jnp.zeros((BATCH, FEATURES)), jnp.float32(0)
      for x, weight in zip(inputs, weights, strict=True):
        x_r, x_z, x_n = jnp.split(x + bias, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(hidden @ kernel, 3, axis=-1)
        z = jax.nn.sigmoid(x_z + h_z)
        r = jax.nn.sigmoid(x_r + h_r)
        n = jnp.tanh(x_n + r * (h_n + candidate_bias))
        hidden = (1 - z) * n + z * hidden
        total += (weight * hidden).sum()
      return total

    def at_once(*arguments):
      return (weights * recurrent.recur_gated(*arguments)).sum()

    every = tuple(range(len(arguments)))
    both = lambda f: testing.jit(jax.value_and_grad(f, every))(*arguments)
    testing.assert_trees_close(both(at_once), both(loop))


class AttentionTest(parameterized.TestCase):
  def test_products_of_rotated_vectors_depend_on_differences(self):
    x, y = _values((1, 8), (1, 8))
    at = lambda v, place: attention.rotate(v, jnp.array([place]))
    product = lambda i, j: float((at(x, i) * at(y, j)).sum())
    self.assertAlmostEqual(product(5, 2), product(13, 10), places=3)
    self.assertNotAlmostEqual(product(5, 2), product(5, 3), places=3)

  def test_attention_is_the_mean_of_what_is_seen(self):
    queries, keys, values = _values((2, 4), (3, 4), (3, 4))
    seen = np.array([[True, False, False], [True, True, True]])
    found = attention.attend(queries, keys, values, seen)
    np.testing.assert_allclose(found[0], values[0], rtol=1e-6)
    scores = np.exp(keys @ queries[1] / 2)
    np.testing.assert_allclose(
      found[1], scores @ values / scores.sum(), rtol=1e-5
    )

  def test_unlike_blocks_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'got \(8, 16\) with 2 heads'):
      models.transformer(TOKENS, (8, 16), 2, TOKENS)
    with self.assertRaisesRegex(ValueError, r'got \(10,\) with 2 heads'):
      models.transformer(TOKENS, (10,), 2, TOKENS)


class LanguageTest(parameterized.TestCase):
  @parameterized.parameters(*language.NAMES)
  def test_an_output_does_not_depend_on_later_tokens(self, name):
    apply, params, _ = _model(name)
    first, second = _tokens(0), _tokens(1)
    for place in range(LENGTH):
      changed = np.where(np.arange(LENGTH) > place, second, first)
      found, kept = apply(params, changed), apply(params, first)
      np.testing.assert_array_equal(
        np.asarray(found)[:, : place + 1], np.asarray(kept)[:, : place + 1]
      )
    # It does on those before.
    changed = first.copy()
    changed[:, 0] = (changed[:, 0] + 1) % TOKENS
    apart = np.abs(apply(params, changed) - apply(params, first))
    self.assertGreater(apart[:, -1].max(), 1e-4)

  @parameterized.parameters(*language.NAMES)
  def test_steps_are_the_whole_network(self, name):
    apply, params, _ = _model(name)
    tokens = _tokens()
    steps = language.stepper(_network(name))
    state = steps.start(params, BATCH, LENGTH)
    step = testing.jit(steps.step)
    found = []
    for place in range(LENGTH):
      state, outputs = step(params, state, tokens[:, place])
      found.append(outputs)
    np.testing.assert_allclose(
      np.stack(found, 1), apply(params, tokens), rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters(*language.NAMES)
  def test_order_of_use_is_that_of_stages(self, name):
    model = models.sequential(_network(name))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    example = jax.ShapeDtypeStruct((1, LENGTH), np.int32)
    order = layer_types.use_order(model.apply, shapes, example)
    self.assertEqual(
      layer_types.modules(order), [name for name, _ in model.stages]
    )


class SamplingTest(parameterized.TestCase):
  def _readers(self, name, window):
    _, params, apply = _model(name)
    outputs = functools.partial(apply, params)
    return (
      sampling.by_windows(outputs, window),
      sampling.by_steps(language.stepper(_network(name)), params, window),
    )

  @parameterized.parameters(*language.NAMES)
  def test_without_temperature_it_is_the_argmax(self, name):
    apply, params, _ = _model(name)
    for reader in self._readers(name, 4):
      found = sampling.sample(
        reader, [1, 2], 6, window=4, temperature=0, key=jax.random.key(0)
      )
      self.assertLen(found, 6)
      tokens, seen = [1, 2], 2
      for token in found:
        padded = np.zeros((BATCH, LENGTH), np.int32)
        padded[0, :seen] = tokens[-seen:]
        outputs = np.asarray(apply(params, padded))[0, seen - 1]
        self.assertEqual(token, outputs.argmax())
        tokens.append(token)
        seen = seen + 1 if seen < 4 else 2

  def test_a_small_temperature_is_none(self):
    reader, _ = self._readers('gru', 4)
    each = [
      sampling.sample(
        reader, [3], 6, window=4, temperature=t, key=jax.random.key(0)
      )
      for t in (0, 1e-6)
    ]
    self.assertEqual(*each)

  def test_tokens_have_their_probabilities(self):
    outputs = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    reader = sampling.Reader(lambda _: (None, outputs), lambda *_: (0, outputs))
    found = sampling.sample(
      *(reader, [0], 500),
      window=4,
      temperature=1.0,
      key=jax.random.key(0),
      excluded=(0,),
    )
    np.testing.assert_allclose(
      np.bincount(found, minlength=3) / 500, [0, 0.4, 0.6], atol=0.07
    )

  @parameterized.parameters(
    ({'prompt': []}, 'a `prompt` of a token at least, got none'),
    ({'temperature': -1.0}, '`temperature` >= 0, got -1.0'),
    ({'temperature': float('nan')}, '`temperature` >= 0, got nan'),
    ({'window': 1}, '`window` >= 2, got 3 and 1'),
  )
  def test_what_is_out_of_range_is_refused(self, changes, sentence):
    arguments = {'prompt': [1], 'window': 4, 'temperature': 1.0} | changes
    with self.assertRaisesRegex(ValueError, sentence):
      sampling.sample(
        sampling.Reader(None, None), count=3, key=None, **arguments
      )


if __name__ == '__main__':
  absltest.main()

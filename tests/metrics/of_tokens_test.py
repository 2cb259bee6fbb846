"""Metrics and loss of tokens: closed forms, masks, sums over clients."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import evaluation
from fmtl_jax import metrics
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing

VOCABULARY, LENGTH, BATCH = 6, 4, 5
MORE = (
  metrics.BITS,
  metrics.BITS_PER_CHARACTER,
  *metrics.TOP_ACCURACIES,
)
TASK = tasks_lib.tokens('t', VOCABULARY, MORE)


def _answered(outputs, targets, valid=None, tasks=(TASK,)):
  """All metrics of one model."""
  outputs = jnp.asarray(outputs, jnp.float32)
  valid = jnp.ones(len(outputs), bool) if valid is None else valid
  return _measured(outputs, targets, valid, tasks)


@functools.partial(testing.jit, static_argnums=3)
def _measured(outputs, targets, valid, tasks):
  losses = tasks_lib.task_loss(tasks)(outputs, targets, jnp.int32(0), None)
  return evaluation.example_metrics(
    tasks, losses, outputs, targets, valid, jnp.int32(0)
  )


def _example():
  rng = np.random.default_rng(0)
  mask = rng.random((BATCH, LENGTH)) < 0.6
  mask[0] = False  # Nothing of it counts.
  mask[1] = True
  return (
    rng.standard_normal((BATCH, LENGTH, VOCABULARY)).astype(np.float32),
    {'tokens': rng.integers(VOCABULARY, size=(BATCH, LENGTH)), 'mask': mask},
  )


class TokensTest(parameterized.TestCase):
  @parameterized.parameters(2, 6, 50)
  def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(self, size):
    _, targets = _example()
    targets = {**targets, 'tokens': targets['tokens'] % size}
    task = tasks_lib.tokens('t', size, MORE)
    outputs = np.full((BATCH, LENGTH, size), 3.0)
    found = _answered(outputs, targets, tasks=(task,))
    self.assertAlmostEqual(float(found['perplexity']), size, places=3)
    self.assertAlmostEqual(float(found['bits_per_token']), math.log2(size), 4)

  def test_they_are_those_of_a_loop(self):
    outputs, targets = _example()
    found = _answered(outputs, targets)
    right, among, nats, per_example = 0, {3: 0, 5: 0}, [], []
    for example, logits in enumerate(outputs.astype(np.float64)):
      of_example = []
      for place in range(LENGTH):
        if targets['mask'][example, place]:
          token = targets['tokens'][example, place]
          order = np.argsort(-logits[place], kind='stable')
          right += order[0] == token
          for k in among:
            among[k] += token in order[:k]
          likelihood = (
            np.exp(logits[place])[token] / np.exp(logits[place]).sum()
          )
          of_example.append(-np.log(likelihood))
      nats += of_example
      per_example.append(np.mean(of_example) if of_example else 0.0)
    expected = {
      'accuracy': right / len(nats),
      'top_3_accuracy': among[3] / len(nats),
      'top_5_accuracy': among[5] / len(nats),
      'perplexity': np.exp(np.mean(nats)),
      'bits_per_character': np.mean(nats) / np.log(2),
      'loss': np.mean(per_example),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(float(found[name]), value, places=5, msg=name)
    self.assertEqual(int(found['weights']['perplexity']), len(nats))

  def test_places_without_a_mask_count_for_nothing(self):
    outputs, targets = _example()
    mask = targets['mask']
    other = np.where(mask[..., None], outputs, 100 * outputs[::-1])
    tokens = np.where(mask, targets['tokens'], 0)

    @testing.jit
    def both(outputs, tokens):
      loss = tasks_lib.task_loss([TASK])
      given = {'tokens': tokens, 'mask': mask}
      total = lambda x: loss(x, given, jnp.int32(0), None).sum()
      return total(outputs), jax.grad(total)(outputs)

    (loss, gradient), (same, _) = (
      both(jnp.asarray(o), t)
      for o, t in ((outputs, targets['tokens']), (other, tokens))
    )
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
    self.assertTrue((np.abs(gradient).sum(-1)[mask] > 0).all())
    found = _answered(outputs, targets)
    changed = _answered(other, {'tokens': tokens, 'mask': mask})
    testing.assert_trees_close(found, changed)

  def test_ties_are_those_of_argmax(self):
    outputs = np.zeros((1, 1, VOCABULARY))
    of_token = [
      _answered(outputs, {'tokens': np.array([[t]]), 'mask': np.ones((1, 1))})
      for t in range(VOCABULARY)
    ]
    self.assertEqual([float(f['accuracy']) for f in of_token], [1, *[0] * 5])
    self.assertEqual(
      [float(f['top_3_accuracy']) for f in of_token], [1, 1, 1, 0, 0, 0]
    )

  def test_over_clients_they_are_those_of_all_tokens(self):
    outputs, targets = _example()
    rows = [np.array([1, 2]), np.array([3, 4])]
    each = [
      _answered(outputs[r], jax.tree.map(lambda x, r=r: x[r], targets))
      for r in rows
    ]
    stack = lambda values: jnp.stack(values)[:, None]
    names = ('perplexity', 'bits_per_token', 'accuracy')
    values = {n: stack([e[n] for e in each]) for n in (*names, 'count')}
    weights = {n: stack([e['weights'][n] for e in each]) for n in names}
    summarize = testing.jit(
      lambda values, weights: evaluation.summarize(
        values,
        jnp.zeros((2, 1), jnp.int32),
        1,
        weights=weights,
        exponentials=('perplexity',),
      )
    )
    found = summarize(values, weights)
    together = _answered(outputs[1:], jax.tree.map(lambda x: x[1:], targets))
    for name in names:
      np.testing.assert_allclose(found[name][0], together[name], rtol=1e-5)
    mean = np.mean([float(e['perplexity']) for e in each])
    np.testing.assert_allclose(found['perplexity_client_mean'][0], mean, 1e-5)

  def test_valid_targets_are_below_the_vocabulary_where_they_count(self):
    tokens = np.array([[0, 5], [6, 5], [6, 5], [-1, 0]])
    mask = np.array([[1, 1], [1, 1], [0, 1], [1, 0]], bool)
    found = tasks_lib.TOKENS.is_valid(
      {'tokens': tokens, 'mask': mask}, np.full(4, VOCABULARY)
    )
    self.assertEqual(found.tolist(), [True, False, True, False])

  def test_flipped_targets_are_others_with_the_same_mask(self):
    _, targets = _example()
    given = jax.tree.map(lambda x: jnp.asarray(x)[None], targets)
    sizes = jnp.full((1, 1), VOCABULARY)
    flipped = tasks_lib.TOKENS.flip(given, sizes)
    np.testing.assert_array_equal(flipped['mask'], given['mask'])
    np.testing.assert_array_equal(
      flipped['tokens'], VOCABULARY - 1 - given['tokens']
    )

  def test_an_exponential_of_something_else_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'exponential it is, got of_set'):
      metrics.Metric(name='m', of_set=lambda _: None, exponential=True)
    with self.assertRaisesRegex(ValueError, 'exponential it is, got root, too'):
      metrics.Metric(
        name='m', values=lambda _: None, root=True, exponential=True
      )


if __name__ == '__main__':
  absltest.main()

"""MOCHA: its duality gap, its optima by other means, and what it relates."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import svm

from fmtl_jax import compatibility
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import mocha
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

FIXED_POINT = 'test_the_gap_closes_whoever_takes_part'
LAM = 0.05
SIGMA = np.array(
  [[5, 2, 1, -2], [2, 4, 1, -1], [1, 1, 3, 0], [-2, -1, 0, 4]], float
)
SIGMA /= np.trace(SIGMA)
SIZES = (9, 5, 7, 3)
UNEVEN = {'dropout': 0.3, 'partial': 0.6, 'least_work': 0.1, 'late': 0.3}


def _federation(data, intercept=False):
  """One dense layer in float64."""
  features = np.shape(data.examples.features)[1:]
  width = tasks_lib.num_outputs(data.tasks)
  model = models.linear(features, width, intercept)
  wide = lambda x: x.astype(jnp.float64)
  return federation_lib.Federation.create(
    (
      lambda key: jax.tree.map(wide, model.init(key)),
      lambda params, x: model.apply(params, wide(x)),
    ),
    mocha.label_rules(['output']),
    data,
  )


def _data(kind, classes=2, sizes=SIZES):
  """Four clients of one task, the last of them turned around; with noise."""
  rng = np.random.default_rng(0)
  task = tasks_lib.Task(name='t', kind=kind, num_classes=classes)
  features = [rng.normal(size=(n, 3)).astype(np.float32) for n in sizes]
  teacher = rng.normal(size=(3, max(classes, 1)))
  labels = []
  for number, x in enumerate(features):
    turned = -teacher if number == 3 else teacher
    scores = x @ turned + rng.normal(size=(len(x), teacher.shape[1]))
    labels.append(
      {
        tasks_lib.BINARY: scores[:, 0] > 0,
        tasks_lib.MULTICLASS: scores.argmax(1),
        tasks_lib.REGRESSION: scores[:, 0],
      }[kind].astype(np.float32)
    )
  labels[0][:2] = (0, 1)
  return dataset_lib.FederatedDataset.from_clients(
    features, labels, [0] * len(sizes), [task]
  )


def _run(federation, data, loss=mocha.dual_losses.HINGE, **own):
  """`(state, rounds, uneven) -> state, gap, metrics of the last round`."""

  def build(uneven):
    return mocha.mocha(
      federation,
      local_optimizers.LocalSgd(epochs=own.get('epochs', 1)),
      round_settings.RoundSettings(
        participation=participation_lib.Participation(**uneven)
      ),
      lam=LAM,
      loss=loss,
      share=own.get('share', 0.5),
      every=own.get('every', 0),
      per_class=own.get('per_class', False),
    )

  @testing.jit
  def run(state, rounds, uneven):
    algorithm = build(uneven)
    state = jax.lax.fori_loop(
      0, rounds, lambda _, s: algorithm.round(s, data)[0], state
    )
    return state, mocha.duality(federation, state, data, lam=LAM, loss=loss)

  def start(sigma=None):
    state = build({}).init(jax.random.key(0), data)
    if sigma is None:
      return state
    return _with(state, sigma=jnp.asarray(sigma)[None])

  no_one = dict.fromkeys(UNEVEN, 0.0)
  return start, lambda state, rounds, uneven=no_one: run(state, rounds, uneven)


def _related(state):
  return state.server['client'].optimizer


def _with(state, **changes):
  server = state.server['client']
  related = server.optimizer._replace(**changes)
  return dataclasses.replace(
    state, server={'client': server._replace(optimizer=related)}
  )


@functools.cache
def _binary():
  """Data of two classes, and what `_run` makes of them."""
  data = _data(tasks_lib.BINARY)
  return data, *_run(_federation(data), data)


class MochaTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))

  def test_the_gap_closes_whoever_takes_part(self):
    """It is never negative; the optimum is that of any stragglers."""
    _, start, run = _binary()
    found = []
    for uneven in (
      {},
      UNEVEN,
      {'partial': 0.5, 'least_work': 0.2},
      {'partial': 1.0, 'least_work': 0.2},
    ):
      uneven = {**dict.fromkeys(UNEVEN, 0.0), **uneven}
      state = start(SIGMA)
      for rounds in (0, 3, 10, 3000):
        state, value = run(state, rounds, uneven)
        self.assertGreaterEqual(value.gap, -1e-12)
        if rounds == 3:
          self.assertGreater(value.gap, 0.01)
      self.assertLess(value.gap, 1e-6)
      found.append(float(value.primal))
    np.testing.assert_allclose(found, found[0], atol=1e-6)

  def test_alpha_and_its_sums_never_part(self):
    """A late client's change counts neither here nor there."""
    data, start, run = _binary()
    state, _ = run(start(SIGMA), 20, UNEVEN | {'late': 0.6})
    rows = data.partition.train.groups()
    x = np.asarray(data.examples.features, np.float64)
    sums = [
      x[r].T @ np.asarray(alpha)[: len(r), 0] / len(r)
      for r, alpha in zip(rows, state.clients, strict=True)
    ]
    kept = _related(state).sums['output']['kernel']
    np.testing.assert_allclose(kept, sums, atol=1e-12)
    self.assertGreater(np.abs(sums).min(0).max(), 0)
    mixed = np.einsum('tk,kdo->tdo', SIGMA, np.stack(sums)) / LAM
    np.testing.assert_allclose(state.params['output']['kernel'], mixed)

  def test_unrelated_clients_are_separate_machines(self):
    data, start, run = _binary()
    state, value = run(start(), 3000)
    self.assertLess(value.gap, 1e-6)
    for client, rows in enumerate(data.partition.train.groups()):
      x = np.asarray(data.examples.features)[rows]
      y = np.asarray(data.examples.labels)[rows, 0]
      alone = svm.LinearSVC(
        loss='hinge',
        C=1 / (LAM * len(SIZES) * len(rows)),
        fit_intercept=False,
        tol=1e-9,
        max_iter=100_000,
        random_state=0,
      ).fit(x, y)
      found = state.params['output']['kernel'][client, :, 0]
      np.testing.assert_allclose(found, alone.coef_[0], atol=1e-3)

  def test_squared_errors_have_the_models_of_a_linear_system(self):
    data = _data(tasks_lib.REGRESSION, 0)
    start, run = _run(_federation(data, intercept=True), data, share=1.0)
    state, value = run(start(SIGMA), 600)
    self.assertLess(abs(value.gap), 1e-10)
    inverse = LAM * np.kron(np.linalg.inv(SIGMA), np.eye(4))
    right = np.zeros((4, 4))
    for client, rows in enumerate(data.partition.train.groups()):
      x = np.asarray(data.examples.features, np.float64)[rows]
      x = np.concatenate([x, np.ones((len(x), 1))], 1)
      y = np.asarray(data.examples.labels)[rows, 0]
      place = slice(4 * client, 4 * client + 4)
      inverse[place, place] += x.T @ x / len(x)
      right[client] = x.T @ y / len(x)
    expected = np.linalg.solve(inverse, right.reshape(-1)).reshape(4, 4)
    layer = state.params['output']
    found = np.concatenate([layer['kernel'][..., 0], layer['bias']], 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_kinds_of_tasks_mix_and_labels_are_missing(self):
    """Two slots on the same outputs, of classes and of numbers."""
    data = testing.toy_data(
      4, 3, 2, kinds=('multiclass', 'binary', 'regression'), missing=0.3
    )
    start, run = _run(_federation(data, True), data, mocha.dual_losses.LOGISTIC)
    state, value = run(start(SIGMA), 1000)
    self.assertBetween(value.gap, -1e-12, 1e-6)
    again, _ = run(state, 1)  # At rest.
    testing.assert_trees_close(again.params, state.params, 1e-4, 1e-4)

  @parameterized.parameters(False, True)
  def test_the_relationship_is_that_of_the_models(self, per_class):
    """After every second round, from W before; W is that of the new one."""
    data = _data(tasks_lib.MULTICLASS, 3)
    own = {'every': 2, 'per_class': per_class, 'share': 1.0}
    start, run = _run(_federation(data), data, **own)
    before, _ = run(start(), 1)
    first = np.eye(4) / 4
    testing.assert_trees_close(
      _related(before).sigma, np.stack([first] * (3 if per_class else 1))
    )
    after, value = run(before, 1)
    self.assertGreaterEqual(value.gap, 0)
    sums = np.asarray(_related(after).sums['output']['kernel'])
    old = np.einsum('tk,kdo->tdo', first, sums) / LAM
    parts = [old[..., o] for o in range(3)] if per_class else [old]
    expected = []
    for part in parts:
      part = part.reshape(4, -1)
      values, vectors = np.linalg.eigh(part @ part.T)
      values = np.sqrt(np.maximum(values, 0))
      values = np.maximum(values / values.sum(), 1e-7)
      root = (vectors * values) @ vectors.T
      expected.append(root / np.trace(root))
    found = np.asarray(_related(after).sigma)
    # Of three numbers, the fourth value is zero up to the root of rounding.
    np.testing.assert_allclose(found, expected, atol=1e-7)
    mix = np.stack(expected * (1 if per_class else 3))
    np.testing.assert_allclose(
      after.params['output']['kernel'],
      np.einsum('otk,kdo->tdo', mix, sums) / LAM,
      atol=1e-6,
    )
    algorithm = mocha.mocha(_federation(data), per_class=per_class)
    np.testing.assert_allclose(
      algorithm.relations(after), np.mean(expected, 0), atol=1e-7
    )

  def test_it_finds_who_is_alike(self):
    data = _data(tasks_lib.BINARY, sizes=(40, 30, 30, 20))
    start, run = _run(_federation(data), data, every=50)
    state, value = run(start(), 200)
    self.assertLess(value.gap, 0.1)
    sigma = np.asarray(_related(state).sigma[0])
    scale = np.sqrt(np.diag(sigma))
    alike = sigma / np.outer(scale, scale)
    self.assertGreater(alike[:3, :3].min(), 0.3)
    self.assertLess(alike[3, :3].max(), -0.3)

  def test_a_message_is_a_model_each_way_and_a_number(self):
    data, *_ = _binary()
    for per_class, outputs in ((False, 1), (True, 1)):
      federation = _federation(data)
      algorithm = mocha.mocha(federation, per_class=per_class)
      messages = algorithm.messages()
      up, _ = communication.message_bytes(federation, messages.up)
      down, _ = communication.message_bytes(federation, messages.down)
      self.assertEqual(up, {'client': 8 * 3})
      self.assertEqual(down, {'client': 8 * (3 + outputs)})

  def test_what_has_no_dual_is_refused(self):
    data = testing.toy_data(4, 3)
    deep, _ = testing.toy_federation(('client', 'client'), data)
    shared, _ = testing.toy_federation(('common',), data)
    linear, _ = testing.toy_federation(('client',), data)
    for federation in (deep, shared):
      with self.assertRaisesRegex(ValueError, 'one dense layer of the type'):
        mocha.mocha(federation)
    own = lambda outputs, labels: jnp.square(outputs[:, 0] - labels)
    with_loss, _ = testing.toy_federation(('client',), data, loss=own)
    with self.assertRaisesRegex(ValueError, 'no `loss` with mocha'):
      mocha.mocha(with_loss)
    for settings, sentence in (
      ({'weighting': {'client': 'paper'}}, "other than 'paper'"),
      (
        {'server': {'client': server_optimizers.ServerOptimizer(optax.adam)}},
        'whose sums are those of the dual',
      ),
      ({'reducer': {'client': robust_aggregators.median}}, 'no `reducer'),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        mocha.mocha(linear, settings=round_settings.RoundSettings(**settings))
    bent = federation_lib.Federation.create(
      (
        lambda key: {'output': {'kernel': jnp.ones((3, 5))}},
        lambda params, x: jnp.tanh(x @ params['output']['kernel']),
      ),
      [('.*', 'client')],
      data,
    )
    with self.assertRaisesRegex(ValueError, 'answers features times a kernel'):
      mocha.mocha(bent).init(jax.random.key(0), data)


if __name__ == '__main__':
  absltest.main()

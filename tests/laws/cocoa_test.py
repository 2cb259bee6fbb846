"""CoCoA waits for the slowest client, where MOCHA takes what there is."""

from absl.testing import absltest
import jax
import numpy as np
from sklearn import svm

from fmtl_jax import algorithms
from fmtl_jax import compatibility
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import cocoa
from fmtl_jax.algorithms import mocha
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

import cases

FIXED_POINT = 'as mocha, whose steps it takes, see mocha_test'
DEADLINE = 0.4
LAM = 0.05
SIZES = (9, 5, 12)


def _round(name):
  """Metrics of a round under a clock, by client."""
  data = cases.toy_data(6, 3, sizes=(8, 20, 12))
  federation, _ = testing.toy_federation(('client',), data)
  clock = participation_lib.Clock(
    steps_per_second=40.0,
    speed_spread=1.0,
    bytes_per_second=1e9,
    deadline=DEADLINE,
  )
  algorithm = algorithms.build(
    name,
    federation,
    settings=round_settings.RoundSettings(
      participation=participation_lib.Participation(
        partial=0.5, least_work=0.3, late=0.5, clock=clock
      )
    ),
    share=1.0,
  )
  metrics = cases.run(algorithm, data).metrics
  order = np.argsort(metrics['client'][0])
  return {
    key: np.asarray(metrics[key][0])[order]
    for key in ('steps', 'simulated_seconds')
  }


class CocoaTest(absltest.TestCase):
  def test_all_take_all_their_steps_and_the_server_waits(self):
    patient, bounded = _round('cocoa'), _round('mocha')
    np.testing.assert_array_equal(patient['steps'], [8, 20, 12] * 2)
    self.assertGreater(patient['simulated_seconds'].max(), 1.5 * DEADLINE)
    self.assertLessEqual(bounded['simulated_seconds'].max(), DEADLINE * 1.001)
    self.assertLess(bounded['steps'].sum(), patient['steps'].sum())


class OneModelTest(absltest.TestCase):
  def test_it_is_one_machine_for_all_clients(self):
    """Whatever `every` says; each client's mean counts alike."""
    self.enter_context(compatibility.enable_x64(True))
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, 3)).astype(np.float32) for n in SIZES]
    labels = [
      (x[:, 0] - x[:, 1] + 0.5 * rng.normal(size=len(x)) > 0).astype(np.float32)
      for x in features
    ]
    task = tasks_lib.Task(name='t')
    data = dataset_lib.FederatedDataset.from_clients(
      features, labels, [0] * len(SIZES), [task]
    )
    model = models.linear((3,), 1, False)
    wide = lambda x: x.astype(np.float64)
    federation = federation_lib.Federation.create(
      (
        lambda key: jax.tree.map(wide, model.init(key)),
        lambda params, x: model.apply(params, wide(x)),
      ),
      cocoa.label_rules(['output']),
      data,
    )
    algorithm = algorithms.build(
      'cocoa', federation, lam=LAM, every=3, one_model=True
    )
    state = algorithm.init(jax.random.key(0), data)

    @testing.jit
    def run(state):
      state = jax.lax.fori_loop(
        0, 2000, lambda _, s: algorithm.round(s, data)[0], state
      )
      return state, mocha.duality(federation, state, data, lam=LAM)

    state, value = run(state)
    self.assertBetween(value.gap, -1e-12, 1e-6)
    kernels = state.params['output']['kernel'][..., 0]
    weights = np.repeat([1 / n for n in SIZES], SIZES)
    machine = svm.LinearSVC(
      loss='hinge',
      C=1 / (LAM * len(SIZES)),
      fit_intercept=False,
      tol=1e-9,
      max_iter=100_000,
      random_state=0,
    ).fit(np.concatenate(features), np.concatenate(labels), weights)
    for kernel in kernels:
      np.testing.assert_allclose(kernel, kernels[0], atol=1e-12)
      np.testing.assert_allclose(kernel, machine.coef_[0], atol=1e-3)


if __name__ == '__main__':
  absltest.main()

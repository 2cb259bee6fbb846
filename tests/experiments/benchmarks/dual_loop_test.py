"""Laws of the loop that MOCHA is compared with: both find the same optimum."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from sklearn import svm

from experiments.benchmarks import dual_loop

CLIENTS, EXAMPLES, FEATURES, PASSES = 3, 50, 4, 400


class DualLoopTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_it_finds_what_mocha_finds(self, problems):
    problem = dual_loop.drawn(CLIENTS, EXAMPLES, FEATURES, problems)
    state = dual_loop.start(problem)
    rng = np.random.default_rng(0)
    dual_loop.loop(problem, state, PASSES, rng)
    compiled = dual_loop.rounds(problem, PASSES, 1)
    kernels = compiled.kernels(compiled.round(compiled.state))
    np.testing.assert_allclose(kernels, state.kernel, atol=1e-2)
    found = dual_loop.primal(problem, kernels)
    self.assertAlmostEqual(dual_loop.primal(problem, state.kernel), found, 3)
    nothing = dual_loop.primal(problem, dual_loop.start(problem).kernel)
    self.assertAlmostEqual(nothing, CLIENTS * problems, 5)

  def test_it_is_a_support_vector_machine_for_each(self):
    problem = dual_loop.drawn(CLIENTS, EXAMPLES, FEATURES, 1)
    state = dual_loop.start(problem)
    dual_loop.loop(problem, state, PASSES, np.random.default_rng(0))
    for x, y, kernel in zip(
      problem.features, problem.targets, state.kernel, strict=True
    ):
      machine = svm.LinearSVC(
        loss='hinge',
        C=1 / (dual_loop.LAMBDA * CLIENTS * len(x)),
        fit_intercept=False,
        tol=1e-8,
        max_iter=100_000,
        random_state=0,
      ).fit(x, y[:, 0])
      np.testing.assert_allclose(kernel, machine.coef_, atol=1e-2)

  def test_figures_are_of_as_many_machines_as_there_are(self):
    problem = dual_loop.drawn(CLIENTS, EXAMPLES, FEATURES, 3)
    found = dual_loop.measured_loop(problem, 20)
    self.assertGreater(found['loops_one_after_another_milliseconds'], 0)
    ours = dual_loop.measured(problem, 4, 1, 4)  # Twenty passes, too.
    self.assertAlmostEqual(ours['primal'] / found['loop_primal'], 1, delta=1e-2)


if __name__ == '__main__':
  absltest.main()

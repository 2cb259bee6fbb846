"""Where algorithms come to rest on least squares, by closed forms.

Clients differ in their data, their sizes and in how curved their losses are,
and take several local steps, so that a plain average rests elsewhere. A
reference loop would share a misreading of the method; what is solved here is
the equation of its optimum, by NumPy.
"""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation

import least_squares

# At rest whoever takes part: what the server keeps is a mean over all clients.
ANY_PARTICIPATION = ('scaffold', 'feddyn', 'mr_mtl')
# At rest if all take part, since a part of the clients has another mean.
# With one local step, where they descend on the weighted loss itself.
ONE_STEP = ('fedavg', 'fedavgm', 'fedsgd', 'multi_task_fl')
# After several steps, where the clients' ways from theta add up to zero.
SEVERAL_STEPS = ('fedprox', 'fednova')
PERSONAL = ('ditto', 'pfedme', 'apfl')
# What is not here, and why; an algorithm that is not here at all says so in its
# own test: `FIXED_POINT = 'where, or why nowhere'`.
NO_FIXED_POINT = {
  'cfl': 'fedavg in each cluster, and who is in one depends on the way there',
  'fedadagrad': 'its steps shrink whether it is at an optimum or not',
  'fedadam': 'steps are divided by their size: near an optimum it oscillates',
  'fedast': 'as fedbuff, in each task',
  'fedavg_finetune': 'fedavg, whose clients stop on the way to their optima',
  'fedbabu': 'fedavg under other labels, a head that never moves',
  'fedbn': 'fedavg under other labels, statistics that no loss has',
  'fedbuff': 'that of fedavg where all arrive together, else of who is fast',
  'fedit': 'the mean of factors is not that of what is trained, the product',
  'fedper': 'fedavg under other labels: heads drift while others average',
  'fedrep': 'body and heads descend in turn, each from where the other stopped',
  'fedsa_lora': 'as fedit, with factors of clients that drift',
  'fedyogi': 'as fedadam',
  'ffa_lora': 'multi_task_fl under other labels',
  'flora': 'it adds up products of factors that are drawn in each round',
  'hard_sharing': 'multi_task_fl on other data',
  'ifca': 'fedavg in each cluster, and who is in one depends on the way there',
  'isolated': 'nothing is averaged: local training alone',
  'lg_fedavg': 'fedavg under other labels',
  'mt_fedavg': 'fedavg under other labels, of clients that weigh by task',
  'mtfl': 'fedavg under other labels, statistics that no loss has',
  'per_fedavg': 'the optimum of another loss, see per_fedavg_test',
  'reptile': 'fedavg_finetune, a server that moves less',
  'separate_fl': 'fedavg in each task',
  'soft_sharing': 'mr_mtl whose clients are the tasks, see soft_sharing_test',
}
SOME_LATE = participation.Participation(dropout=0.2, late=0.3)

# Name, participants, weights, late clients, problem.
_CASES = (
  (0, 'examples', SOME_LATE, least_squares.one_task),
  (2, 'uniform', SOME_LATE, least_squares.one_task),
  (1, 'task_balanced', None, least_squares.two_tasks),
  (1, 'examples', SOME_LATE, least_squares.two_slots),
  (1, 'task_balanced', SOME_LATE, least_squares.two_slots),
)
_OWN = {'feddyn': {'alpha': 1.0}, 'mr_mtl': {'lam': 0.8}}


class AnyParticipationTest(parameterized.TestCase):
  def assert_rests(self, name, problem, weighting, state, theta, views):
    """Compares what was found with the optimum and what is kept for it."""
    weights, losses = problem.weights(weighting), problem.losses(weighting)
    if name == 'mr_mtl':
      mean, models = _mean_regularized(problem, weights, losses, 0.8)
      np.testing.assert_allclose(theta, mean, rtol=2e-3, atol=2e-3)
      held = ~np.isnan(views)
      np.testing.assert_allclose(views[held], models[held], 2e-3, 2e-3)
      return
    optimum = problem.zero_of(weights, losses)
    np.testing.assert_allclose(theta, optimum, rtol=2e-3, atol=2e-3)
    # What clients keep is their gradient, what the server keeps the mean.
    kept = problem.of_views(state.clients)
    kept = np.where(np.isnan(kept), 0, kept)
    memory = problem.theta(
      {
        'shared': state.server['common'].memory['shared'],
        'task': state.server['task'].memory['task'],
      }
    )
    np.testing.assert_allclose((weights * kept).sum(0), memory, atol=1e-4)
    gradients = np.stack([a @ optimum - h for a, h in losses])
    np.testing.assert_allclose(kept, gradients, rtol=1e-2, atol=1e-2)
    self.assertGreater(np.abs(gradients).max(), 0.3)

  @parameterized.parameters(
    (name, *case) for name in ANY_PARTICIPATION for case in _CASES
  )
  def test_it_rests_at_the_optimum_of_the_weighted_loss(
    self, name, count, weighting, taking_part, make
  ):
    problem = make()
    slots = 'all' if make is least_squares.two_slots else 'drawn'
    found = problem.run(
      name,
      count,
      weighting,
      rounds=1500,
      own=_OWN.get(name),
      participation=taking_part,
      slots=slots,
    )
    self.assert_rests(name, problem, weighting, *found)


def _mean_regularized(problem, weights, losses, lam):
  """The mean and the models [M, size] of MR-MTL, which solve one system.

  A_m theta_m - h_m + lam (theta_m - mean) = 0 and mean = sum_m p_m theta_m; a
  model has the mean where its client does not hold a task.
  """
  identity = np.eye(problem.size)
  pulled = [np.linalg.inv(a + lam * identity) for a, _ in losses]
  model = lambda mean: np.stack(
    [inv @ (h + lam * mean) for inv, (_, h) in zip(pulled, losses, strict=True)]
  )
  offset = (weights * model(np.zeros(problem.size))).sum(0)
  columns = [(weights * model(unit)).sum(0) - offset for unit in identity]
  mean = np.linalg.solve(identity - np.stack(columns, 1), offset)
  return mean, model(mean)


class EveryoneTest(parameterized.TestCase):
  """All clients take part."""

  @parameterized.parameters(
    ('fedavg', 'examples', None),
    ('fedavgm', 'uniform', {'server_momentum': 0.5}),
    ('fedsgd', 'paper', None),
    ('multi_task_fl', 'task_balanced', None),
  )
  def test_one_step_descends_on_the_weighted_loss(self, name, weighting, own):
    problem = least_squares.two_tasks()
    _, theta, _ = problem.run(
      name, 0, weighting, rounds=3000, own=own, epochs=1
    )
    optimum = problem.zero_of(problem.weights(weighting), problem.losses())
    np.testing.assert_allclose(theta, optimum, rtol=1e-3, atol=1e-3)

  @parameterized.parameters(0.0, 2.0)
  def test_fedprox_rests_where_ways_from_theta_add_up_to_zero(self, mu):
    """mu = 0 is FedAvg, which misses the optimum."""
    problem = least_squares.one_task()
    _, theta, _ = problem.run('fedprox', own={'mu': mu})
    weights = problem.weights('examples')
    maps = []
    for a, h in problem.losses():
      pulled = a + mu * np.eye(len(a))
      left = np.linalg.matrix_power(
        np.eye(len(a)) - least_squares.RATE * pulled, least_squares.EPOCHS
      )
      way = (np.eye(len(a)) - left) @ np.linalg.inv(pulled)
      maps.append((way @ a, way @ h))
    expected = problem.zero_of(weights, maps)
    np.testing.assert_allclose(theta, expected, rtol=1e-3, atol=1e-3)
    optimum = problem.zero_of(weights, problem.losses())
    self.assertGreater(np.abs(expected - optimum).max(), 0.05)

  @parameterized.parameters(
    (0.0, False, 'examples'), (0.6, False, 'paper'), (0.6, True, 'uniform')
  )
  def test_fednova_rests_where_directions_add_up_to_zero(
    self, momentum, nesterov, weighting
  ):
    """Clients take 2, 5, 15 and 6 steps on examples that are all the same."""
    rng = np.random.default_rng(3)
    sizes = (4, 9, 30, 12)
    x = [np.repeat(rng.normal(size=(1, 1)), n, 0) for n in sizes]
    labels = [np.full((n, 1), rng.normal()) for n in sizes]
    problem = least_squares.Problem(x, labels, np.zeros((4, 1), int))
    _, theta, _ = problem.run(
      'fednova',
      0,
      weighting,
      rounds=1500,
      batch_size=2,
      epochs=1,
      optimizer=local_optimizers.Sgd(momentum=momentum, nesterov=nesterov),
    )
    weights, maps = problem.weights(weighting), []
    for (a, h), size in zip(problem.losses(), sizes, strict=True):
      steps = -(-size // 2)
      way, work = _way(a, steps, momentum, nesterov)
      maps.append((way @ a / work, way @ h / work))
    expected = problem.zero_of(weights, maps)
    np.testing.assert_allclose(theta, expected, rtol=2e-3, atol=2e-3)

  def test_personal_models_of_ditto_are_pulled_to_the_optimum(self):
    problem = least_squares.one_task()
    lam = 0.7
    _, theta, views = problem.run(
      'ditto', rounds=600, epochs=1, own={'lam': lam, 'personal_epochs': 5}
    )
    weights, losses = problem.weights('examples'), problem.losses()
    optimum = problem.zero_of(weights, losses)
    np.testing.assert_allclose(theta, optimum, rtol=1e-3, atol=1e-3)
    expected = [
      np.linalg.solve(a + lam * np.eye(len(a)), h + lam * optimum)
      for a, h in losses
    ]
    np.testing.assert_allclose(views, expected, rtol=1e-3, atol=1e-3)

  @parameterized.parameters(False, True)
  def test_mixtures_of_apfl_are_the_clients_optima(self, adapt):
    problem = least_squares.one_task()
    _, theta, views = problem.run(
      'apfl',
      rounds=3000,
      epochs=1,
      rate=0.1,
      own={'alpha': 0.6, 'adapt': adapt},
    )
    losses = problem.losses()
    optimum = problem.zero_of(problem.weights('examples'), losses)
    np.testing.assert_allclose(theta, optimum, rtol=1e-3, atol=1e-3)
    expected = [np.linalg.solve(a, h) for a, h in losses]
    np.testing.assert_allclose(views, expected, rtol=5e-3, atol=5e-3)

  @parameterized.parameters(1.0, 0.5)
  def test_pfedme_minimizes_the_mean_of_moreau_envelopes(self, beta):
    problem = least_squares.one_task()
    lam = 1.5
    _, theta, views = problem.run(
      'pfedme',
      0,
      'uniform',
      rounds=600,
      epochs=1,
      rate=0.2,
      own={
        'lam': lam,
        'inner_steps': 120,
        'personal_learning_rate': 0.1,
        'beta': beta,
      },
    )
    losses, maps = problem.losses(), []
    near = [np.linalg.inv(a + lam * np.eye(len(a))) for a, _ in losses]
    for (a, h), inverse in zip(losses, near, strict=True):
      maps.append((lam * inverse @ a, lam * inverse @ h))
    w = problem.zero_of(problem.weights('uniform'), maps)
    np.testing.assert_allclose(theta, w, rtol=1e-3, atol=1e-3)
    expected = [
      inverse @ (h + lam * w)
      for (_, h), inverse in zip(losses, near, strict=True)
    ]
    np.testing.assert_allclose(views, expected, rtol=1e-3, atol=1e-3)


def _way(a, steps, momentum, nesterov):
  """What steps from theta move by, times h - A theta, and |a|_1."""
  size = len(a)
  moved, trace = np.zeros((size, size)), np.zeros((size, size))
  counted, one = 0.0, 0.0
  for _ in range(steps):
    gradient = a @ moved - np.eye(size)  # At theta + moved (h - A theta).
    trace = gradient + momentum * trace
    step = gradient + momentum * trace if nesterov else trace
    moved = moved - least_squares.RATE * step
    one = 1 + momentum * one
    counted += 1 + momentum * one if nesterov else one
  return moved, counted


class ListTest(absltest.TestCase):
  def test_every_algorithm_has_a_fixed_point_here_or_a_reason(self):
    here = [*ANY_PARTICIPATION, *ONE_STEP, *SEVERAL_STEPS, *PERSONAL]
    said = [*here, *NO_FIXED_POINT]
    self.assertLen(set(said), len(said))
    self.assertContainsSubset(said, algorithms.ALGORITHMS)
    folder = pathlib.Path(__file__).parent
    for name in set(algorithms.ALGORITHMS) - set(said):
      own = (folder / f'{name}_test.py').read_text(encoding='utf-8')
      self.assertRegex(own, r"\nFIXED_POINT = '\w", name)


if __name__ == '__main__':
  absltest.main()

"""Laws of models that clients keep beside what they share."""

import dataclasses
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import testing
from fmtl_jax.algorithms import personal_models
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.rounds import round_settings
from fmtl_jax.storage import checkpoints

import cases
import least_squares


class PersonalModelsTest(parameterized.TestCase):
  """What clients predict with that were not drawn."""

  @parameterized.parameters('ditto', 'apfl')
  def test_who_was_never_drawn_starts_from_the_newest_model(self, name):
    """It predicts with it, and its first training starts there."""
    problem = least_squares.one_task()
    own = {'ditto': {'lam': 0.0}, 'apfl': {'alpha': 1.0}}[name]
    entry = algorithms.ALGORITHMS[name]
    algorithm = entry.build(
      problem.federation,
      local_optimizers.LocalSgd(learning_rate=least_squares.RATE, batch_size=0),
      round_settings.RoundSettings(
        clients_per_task=1, placement=round_settings.Placement(execution='vmap')
      ),
      **own,
    )
    round_fn = testing.jit(algorithm.round)
    state = testing.jit(algorithm.init)(jax.random.key(0), problem.data)
    drawn, models = set(), {}
    for _ in range(12):
      theta = problem.theta(state.params)
      state, metrics = round_fn(state, problem.data)
      (client,) = np.asarray(metrics['client']).tolist()
      a, h = problem.losses()[client]
      start = models.get(client, theta)
      models[client] = start - least_squares.RATE * (a @ start - h)
      drawn.add(client)
      views = problem.of_views(cases.views_of(algorithm, state, problem.data))
      for number in range(4):
        expected = models.get(number, problem.theta(state.params))
        np.testing.assert_allclose(views[number], expected, 1e-4, 1e-5)
    self.assertLen(drawn, 4)


class CheckpointsTest(parameterized.TestCase):
  """States whose clients kept something else."""

  @parameterized.parameters('ditto', 'apfl', 'pfedme', 'mr_mtl')
  def test_one_of_another_kind_is_refused_and_says_what_differs(self, name):
    problem = least_squares.one_task()
    some_late = participation.Participation(late=0.5)
    algorithm = algorithms.ALGORITHMS[name].build(
      problem.federation,
      settings=round_settings.RoundSettings(participation=some_late),
    )
    state = testing.jit(algorithm.init)(jax.random.key(0), problem.data)
    view = cases.views_of(algorithm, state, problem.data)
    kept, differs = {
      'ditto': (lambda x: x._replace(took_part=()), 'took_part'),
      'apfl': (lambda x: x._replace(took_part=()), 'took_part'),
      'pfedme': (lambda _: personal_models.Kept(view, ()), 'clients/params'),
      'mr_mtl': (lambda x: x._replace(reported=()), 'clients/reported'),
    }[name]
    before = dataclasses.replace(state, clients=kept(state.clients))
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoints.Checkpoints(folder)
      saved.save(1, before, {})
      saved.wait()
      with self.assertRaisesRegex(
        ValueError, rf'does not fit this federation: it differs in .*{differs}'
      ):
        saved.restore(state)
      saved.close()

  def test_one_of_mr_mtl_whom_everyone_reports_to_has_as_much_as_ever(self):
    problem = least_squares.one_task()
    algorithm = algorithms.ALGORITHMS['mr_mtl'].build(problem.federation)
    state = testing.jit(algorithm.init)(jax.random.key(0), problem.data)
    self.assertIsInstance(state.clients, personal_models.Kept)


if __name__ == '__main__':
  absltest.main()

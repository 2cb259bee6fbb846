"""Laws of noise that is related over rounds, and of clients that take turns."""

import dataclasses
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import privacy
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.cohorts import poisson
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import private_aggregators
from tests import needs

import cases

CLIENTS, TASKS, BANDS, ROUNDS = 12, 2, 3, 6
GROUPS = ledgers.Groups(
  names=('a', 'b'), sizes=(60, 45), clients_per_task=(5, 3)
)


def banded(bands=BANDS, **settings):
  noise = privacy.BandedNoise(bands=bands)
  return privacy.ClientPrivacy(**{'banded': noise} | settings)


def rounds_of(data, private, rate=0.1):
  """Rounds of two clients of each task, and the federation."""
  federation, _ = testing.toy_federation(('common', 'task'), data)
  settings = round_settings.RoundSettings(
    privacy=private,
    clients_per_task=2,
    placement=round_settings.Placement(execution='vmap'),
  )
  local = cases.Local(rate=rate, batch_size=2).package()
  return multi_task_fl.multi_task_fl(federation, local, settings), federation


def matrix(coefficients, size):
  """C of the coefficients, `[size, size]`."""
  found = np.zeros((size, size))
  for r, coefficient in enumerate(coefficients):
    found += coefficient * np.eye(size, k=-r)
  return found


class NoiseTest(parameterized.TestCase):
  def test_sums_of_all_owners_have_that_of_the_inverse_matrix(self):
    """Clients send zeros: what moves is noise, of many federations."""
    data, runs, z = testing.toy_data(CLIENTS, TASKS), 300, 2.0
    private = banded(clipping_norm=0.5, noise_multiplier=z)
    algorithm, federation = rounds_of(data, private, rate=0.0)

    def run(key):
      start = algorithm.init(key, data)
      step = lambda state, _: (algorithm.round(state, data)[0],) * 2
      last, states = jax.lax.scan(step, start, length=ROUNDS)
      moved = lambda x, xs: jnp.diff(xs, axis=0, prepend=x[None])
      noise = last.privacy.noise
      return jax.tree.map(moved, start.params, states.params), noise

    keys = jax.random.split(jax.random.key(1), runs)
    found, kept = testing.jit(lambda x: jax.lax.map(run, x))(keys)
    inverse = np.linalg.inv(matrix(private.banded.coefficients, ROUNDS))
    wanted = inverse @ inverse.T
    self.assertGreater(abs(wanted[4, 2]), 0.05)
    values = []
    for label, leaf in zip(
      jax.tree.leaves(federation.layer_types),
      jax.tree.leaves(found),
      strict=True,
    ):
      # Two clients of each task are expected.
      noise = np.asarray(leaf) * {'common': 4, 'task': 2}[label] / (0.5 * z)
      noise = noise.reshape(runs, ROUNDS, -1)
      values.append(np.moveaxis(noise, 1, 0).reshape(ROUNDS, -1))
      count = values[-1].shape[1]
      np.testing.assert_allclose(
        values[-1] @ values[-1].T / count, wanted, atol=9 / math.sqrt(count)
      )
    count = sum(x.shape[1] for x in values)
    total = sum(x @ x.T for x in values) / count
    np.testing.assert_allclose(total, wanted, atol=8 / math.sqrt(count))
    # No more is kept than what the coming rounds need.
    for leaf, x in zip(
      jax.tree.leaves(kept), jax.tree.leaves(found), strict=True
    ):
      self.assertEqual(leaf.shape, (runs, BANDS - 1, *x.shape[2:]))

  def test_of_one_band_rounds_are_those_of_independent_noise(self):
    data = cases.toy_data(CLIENTS, TASKS)
    settings = {'noise_multiplier': 1.0, 'clipping_norm': 0.1}
    programs = []
    for private in (banded(1, **settings), privacy.ClientPrivacy(**settings)):
      algorithm, _ = rounds_of(data, private)
      state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
      self.assertIsNone(state.privacy.noise)
      program = jax.jit(algorithm.round).lower(state, data)
      programs.append(program.as_text())
    self.assertEqual(*programs)

  @parameterized.parameters(2, 3, 8)
  @needs.jax_privacy
  def test_it_is_that_of_jax_privacy(self, bands):
    from jax_privacy.matrix_factorization import toeplitz

    coefficients = privacy.BandedNoise(bands=bands).coefficients
    fresh = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    row = jnp.array(coefficients, jnp.float32)
    streamed = toeplitz.inverse_as_streaming_matrix(row)
    theirs = streamed.init_multiply(fresh[0])
    ours = {'x': jnp.zeros((bands - 1, 3))}
    for z in fresh:
      ours = private_aggregators.banded_noise(coefficients, ours, {'x': z})
      expected, theirs = streamed.multiply_next(z, theirs)
      np.testing.assert_allclose(ours['x'][0], expected, rtol=1e-5, atol=1e-5)

  def test_coefficients_are_of_norm_one_and_best_for_their_rounds(self):
    rounds, errors = 20, []
    for noise in (
      privacy.BandedNoise(bands=4, rounds=rounds),
      privacy.BandedNoise(bands=4),
      privacy.BandedNoise(bands=1),
    ):
      c = matrix(noise.coefficients, rounds)
      self.assertBetween(np.linalg.norm(c[:, 0]), 1 - 1e-5, 1)
      sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(c)
      errors.append(np.square(sums).sum())
    self.assertLess(errors[0], 0.999 * errors[1])
    self.assertLess(errors[1], 0.6 * errors[2])


class TurnsTest(absltest.TestCase):
  def test_two_rounds_of_a_client_are_never_closer_than_the_bands(self):
    """Nor rarer than its rate, which is b times that of all rounds."""
    sizes, counts, rounds = (11, 10), (2, 3), 1200
    data = cases.toy_data(sum(sizes), TASKS)
    data_sizes = np.bincount(np.asarray(data.partition.client_tasks)[:, 0])
    self.assertEqual(tuple(data_sizes), sizes)
    caps = ledgers.caps(
      banded(),
      ledgers.Groups(names='ab', sizes=sizes, clients_per_task=counts),
    )

    def draw(number):
      key = cohorts.round_keys(jax.random.key(0), number)[0]
      cycle = cohorts.Cycle(number, BANDS)
      cohort = cohorts.sample(
        key, data, counts, sizes, cohorts.DRAWN, caps, cycle
      )
      there = jnp.zeros(sum(sizes), jnp.int32)
      return there.at[cohort.client].add(1, mode='drop')

    draws = testing.jit(lambda x: jax.lax.map(draw, x))(jnp.arange(rounds))
    there = np.asarray(draws)
    self.assertEqual(there.max(), 1)
    for client in range(sum(sizes)):
      gaps = np.diff(np.flatnonzero(there[:, client]))
      self.assertEqual(gaps.min(), BANDS)
      self.assertFalse((gaps % BANDS).any())
    rates = np.array(counts) / sizes
    tasks = np.asarray(data.partition.client_tasks)[:, 0]
    np.testing.assert_allclose(there.mean(0), rates[tasks], atol=0.05)
    # All parts of a group have their turn.
    first = (there[:BANDS].sum(0) > 0).sum()
    self.assertGreater(first, 4)

  def test_a_turn_has_all_members_of_its_part(self):
    cycle = poisson.Cycle(jnp.int32(7), 3)  # The second part.
    np.testing.assert_array_equal(cycle.sizes((5, 6, 1)), [2, 2, 0])
    np.testing.assert_array_equal(cycle.members(jnp.arange(2)), [1, 4])


class LedgerTest(parameterized.TestCase):
  def test_of_one_band_it_is_the_ordinary_one(self):
    settings = {'noise_multiplier': 1.5}
    found = [
      ledgers.epsilons(private, GROUPS, 2)
      for private in (banded(1, **settings), privacy.ClientPrivacy(**settings))
    ]
    self.assertEqual(*found)
    self.assertEqual(
      ledgers.samplings(banded(1), GROUPS),
      ledgers.samplings(privacy.ClientPrivacy(), GROUPS),
    )

  @needs.jax_privacy
  def test_it_is_that_of_jax_privacy(self):
    from jax_privacy import accounting as theirs

    private = banded(noise_multiplier=1.0, cap=1000)
    found = ledgers.epsilons(private, GROUPS, 14)
    ledger = theirs.DpsgdTrainingAccountant(
      dp_accountant_config=theirs.PldAccountantConfig(
        value_discretization_interval=1e-3
      )
    )
    for name, size, count in zip(
      GROUPS.names, GROUPS.sizes, GROUPS.clients_per_task, strict=True
    ):
      expected = ledger.compute_epsilon(
        14,
        theirs.DpParams(
          noise_multipliers=1.0,
          num_samples=size,
          delta=private.delta,
          batch_size=count,
          cycle_length=BANDS,
        ),
      )
      self.assertAlmostEqual(found[name], expected, places=6)

  def test_a_client_is_charged_for_its_turns(self):
    private = banded(noise_multiplier=1.0)
    sampling = ledgers.samplings(private, GROUPS)[0]
    self.assertAlmostEqual(sampling.rate, BANDS * 5 / 60, places=12)
    self.assertEqual((sampling.population, sampling.cap), (20, 14))
    self.assertEqual(
      [ledgers.turns(BANDS, n) for n in (0, 1, 3, 4)], [0, 1, 1, 2]
    )
    # Fewer rounds of a higher rate cost more, for the same noise of a round.
    groups = ledgers.Groups(names='a', sizes=(60,), clients_per_task=(5,))
    plain = privacy.ClientPrivacy(noise_multiplier=1.0, cap=1000)
    found, less = (
      ledgers.epsilons(one, groups, 30, accountant='rdp')['a']
      for one in (dataclasses.replace(private, cap=1000), plain)
    )
    self.assertGreater(found, 1.2 * less)
    with mock.patch.object(accounting, 'calibrated', return_value=2.0) as call:
      ledgers.calibrated(5.0, private, groups, 31)
    self.assertEqual(call.call_args.args[2], 11)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'sampling': 'fixed'}, "`sampling`='poisson' with `bands` > 1.*'fixed'"),
    ({'noise': 'local'}, "`noise`='central' with `bands` > 1"),
    ({'adaptive': privacy.AdaptiveClipping()}, '`adaptive`=None with `bands`'),
  )
  def test_settings_without_a_bound(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      banded(**settings)
    banded(1, **settings)

  def test_groups_that_cannot_take_turns(self):
    data = cases.toy_data(CLIENTS, TASKS)
    with self.assertRaisesRegex(ValueError, 'got 4 times 2; set fewer'):
      rounds_of(data, banded(4))
    with self.assertRaisesRegex(ValueError, 'clients of one task each'):
      rounds_of(cases.toy_data(CLIENTS, TASKS, 2), banded(2))

  def test_numbers(self):
    with self.assertRaisesRegex(ValueError, '`bands` >= 1, got 0'):
      privacy.BandedNoise(bands=0)
    with self.assertRaisesRegex(ValueError, '`bands` <= 2, the number of'):
      privacy.BandedNoise(bands=3, rounds=2)


if __name__ == '__main__':
  absltest.main()

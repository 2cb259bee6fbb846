"""CoCoA waits for the slowest client, where MOCHA takes what there is."""

from absl.testing import absltest
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import testing
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.rounds import round_settings

import cases

FIXED_POINT = 'as mocha, whose steps it takes, see mocha_test'
DEADLINE = 0.4


def _round(name):
  """Metrics of a round under a clock, by client."""
  data = testing.toy_data(6, 3, sizes=(8, 20, 12))
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


if __name__ == '__main__':
  absltest.main()

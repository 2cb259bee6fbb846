"""Laws of the ceilings: errors are those of the precision."""

from absl.testing import absltest

from experiments.benchmarks import ceilings


class CeilingsTest(absltest.TestCase):
  def test_every_precision_has_a_rate_and_an_error_or_a_reason(self):
    found = ceilings.measure(size=96)
    self.assertEqual(tuple(found['products']), ceilings.PRECISIONS)
    self.assertGreater(found['copy_bytes_per_second'], 0)
    highest = found['products']['highest']
    self.assertGreater(highest['flops_per_second'], 0)
    self.assertBetween(highest['relative_error'], 1e-9, 1e-5)
    for name, figures in found['products'].items():
      self.assertTrue('error' in figures or figures['relative_error'] < 1e-2)
      self.assertNotIn('\n', figures.get('error', ''), name)


if __name__ == '__main__':
  absltest.main()

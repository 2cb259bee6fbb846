"""Laws of the ceilings: errors are those of the precision."""

from absl.testing import absltest

from experiments.benchmarks import ceilings
from fmtl_jax import execution


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

  def test_those_of_products_in_float32_are_kept(self):
    found = {
      'products': {'highest': {'flops_per_second': 3.0}},
      'copy_bytes_per_second': 2.0,
    }
    self.assertEqual(ceilings.of_products(found), execution.Ceilings(3.0, 2.0))
    found['products']['highest'] = {'error': 'no float32 here'}
    with self.assertRaisesRegex(ValueError, 'failed: no float32 here'):
      ceilings.of_products(found)


if __name__ == '__main__':
  absltest.main()

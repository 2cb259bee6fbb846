"""The measurement of private alignment: what it says of small sets."""

from absl.testing import absltest

from experiments.benchmarks import alignment
from tests import needs


class MeasuredTest(absltest.TestCase):
  @needs.cryptography
  def test_it_says_whether_rows_are_those_of_the_sets(self):
    found = alignment.measured(alignment.sets(12, 5, 3), show=False)
    self.assertTrue(found['is_exact'])
    self.assertEqual(found['rows'], 5)
    # Twelve points there and back to each of two others, and five places.
    others = 32 * (12 + 12)
    self.assertEqual(
      found['bytes_by_party'], [2 * (others + 4 * 5), others, others]
    )
    self.assertGreater(found['cpu_seconds'], 0)

  def test_more_cannot_be_shared_than_there_are(self):
    with self.assertRaisesRegex(ValueError, '--identifiers=3, got 4'):
      alignment.sets(3, 4, 2)


if __name__ == '__main__':
  absltest.main()

"""Neighbours and thresholds."""

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.secure_aggregation import protocol


class NeighboursTest(parameterized.TestCase):
  @parameterized.parameters((9, 4), (9, 2), (5, 4), (4, 4), (6, None), (3, 2))
  def test_neighbourhood_is_mutual(self, count, neighbours):
    made = protocol.Protocol(2, neighbours)
    ring = [5 * i % 97 for i in range(count)]
    found = made.neighbours_of(ring)
    self.assertSameElements(found, ring)
    expected = min(count - 1, neighbours or count)
    self.assertEqual(made.holders(count), expected + 1)
    for client, others in found.items():
      self.assertLen({*others} - {client}, expected)
      for other in others:
        self.assertIn(client, found[other])

  def test_neighbours_are_next_on_the_ring(self):
    found = protocol.Protocol(2, 2).neighbours_of('abcd')
    self.assertEqual(found['a'], ('d', 'b'))
    self.assertEqual(found['c'], ('b', 'd'))


class ThresholdTest(parameterized.TestCase):
  @parameterized.parameters(
    (3, None), (4, None), (100, None), (100, 10), (5, 2)
  )
  def test_two_thirds_are_allowed(self, count, neighbours):
    made = protocol.two_thirds(count, neighbours)
    made.check(count)
    self.assertGreater(3 * made.threshold, 2 * made.holders(count))

  @parameterized.parameters(
    (5, None, 4, 'at least 5 clients in a run'),
    (2, None, 2, 'at least 3 clients'),
    (5, None, 10, r'in \[6, 10\], more than half'),
    (6, 4, 10, r'in \[3, 5\], more than half'),
  )
  def test_small_groups_and_thresholds_are_refused(
    self, threshold, neighbours, count, message
  ):
    with self.assertRaisesRegex(ValueError, message):
      protocol.Protocol(threshold, neighbours).check(count)

  @parameterized.parameters((1, None), (2, 3), (2, 0))
  def test_mistakes(self, threshold, neighbours):
    with self.assertRaisesRegex(ValueError, 'Expected `'):
      protocol.Protocol(threshold, neighbours)


if __name__ == '__main__':
  absltest.main()

"""Laws of private alignment: exact, and nothing but sizes can be seen."""

import hashlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import numpy as np

from fmtl_jax.vertical import alignment
from fmtl_jax.vertical import curve

from tests import needs

_SETS = strategies.sets(strategies.integers(0, 9), max_size=6)


def _shared(identifiers, found):
  """What parties have in common, as each of them sees it."""
  return [
    [own[i] for i in positions]
    for own, positions in zip(identifiers, found.positions, strict=True)
  ]


@needs.cryptography
class IntersectionTest(parameterized.TestCase):
  @hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
  @hypothesis.given(strategies.lists(_SETS, min_size=2, max_size=4))
  def test_it_is_that_of_the_sets_in_one_order(self, sets):
    identifiers = [list(s) for s in sets]
    rows = _shared(identifiers, alignment.align(identifiers))
    for of_party in rows:
      self.assertEqual(of_party, rows[0])
    self.assertCountEqual(rows[0], set.intersection(*sets))

  @parameterized.parameters(
    ([], [], []),
    ([], ['a'], []),
    (['a'], ['a'], ['a']),
    (['a', 'b'], ['b', 'a'], ['a', 'b']),
    (['a', 'b'], ['c'], []),
    (['a\ud800', 'b'], ['a\ud800'], ['a\ud800']),
    ([b'a', 7, 'é'], ['a', 7, '7', 'é'], [7, 'é']),
  )
  def test_by_hand(self, one, other, shared):
    for label_party in (0, 1):
      found = alignment.align([one, other], label_party)
      for rows in _shared([one, other], found):
        self.assertCountEqual(rows, shared)

  def test_numbers_of_arrays_are_those_of_python(self):
    found = alignment.align([np.array([5, 7]), [7, 8]])
    self.assertEqual([p.tolist() for p in found.positions], [[1], [0]])

  @parameterized.parameters(
    ([['a', 'b', 'a'], ['a']], "of x once, got 'a' twice"),
    ([[1.5], ['a']], 'text, bytes or whole numbers, got 1.5'),
    ([[True], ['a']], 'got True'),
    (['ab', ['a']], "a list of identifiers of x, got 'ab'"),
    (['ab' * 40, ['a']], 'a list of identifiers of x, got one text'),
    ([5, ['a']], 'a list of identifiers of x, got 5'),
    ([['a']], 'at least two parties'),
  )
  def test_wrong_identifiers_are_refused(self, identifiers, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      alignment.align(identifiers, names=['x', 'y'][: len(identifiers)])

  def test_a_label_party_that_there_is_not_is_refused(self):
    with self.assertRaisesRegex(ValueError, '`label_party` to be one of the 2'):
      alignment.align([['a'], ['b']], 2)


@needs.cryptography
class TranscriptTest(parameterized.TestCase):
  IDS = tuple(
    [f'{name} of a long name' for name in names]  # Is in no message by chance.
    for names in (
      ('ann', 'bob', 'cy', 'di'),
      ('bob', 'di', 'eve'),
      ('di', 'bob'),
    )
  )

  def _lengths(self, found):
    return [
      [(m.sender, m.receiver), [[len(x) for x in part] for part in m.lists]]
      for m in found.messages
    ]

  def test_its_length_depends_on_sizes_alone(self):
    first = alignment.align(self.IDS[:2])
    other = alignment.align([['p', 'q', 'r', 's'], ['t', 'u', 'v']])
    self.assertEqual(self._lengths(first), self._lengths(other))
    self.assertEqual(first.bytes_sent(0), 32 * (4 + 3))
    self.assertEqual(first.bytes_sent(1), 32 * (4 + 3))

  def test_with_more_parties_it_depends_on_the_number_of_rows_as_well(self):
    found = alignment.align(self.IDS)
    # With each of two others, and two places for each.
    self.assertEqual(found.bytes_sent(0), 32 * (4 + 3 + 4 + 2) + 2 * 2 * 4)
    self.assertEqual(found.bytes_sent(2), 32 * (4 + 2))

  def test_nobody_can_recompute_what_was_sent(self):
    """Neither identifiers, hashes nor points; new numbers give all anew."""
    seen = []
    for _ in range(2):
      found = alignment.align(self.IDS[:2])
      sent = [x for m in found.messages for part in m.lists for x in part]
      seen.append(set(sent))
      for name in {*self.IDS[0], *self.IDS[1]}:
        text = curve.encoded(name)
        known = [curve.point(text), name.encode(), text]
        known += [
          hashlib.new(h, t).digest()
          for h in ('sha256', 'sha512')
          for t in (name.encode(), text)
        ]
        for item in known:
          for message in sent:
            self.assertNotIn(item, message)
    self.assertEmpty(seen[0] & seen[1])

  def test_all_points_are_on_the_curve_whatever_the_identifier(self):
    """A point of the twist would be told by its multiples."""
    found = alignment.align([list(range(40)), list(range(20, 50))])
    for message in found.messages:
      for point in [x for part in message.lists for x in part]:
        self.assertTrue(curve.is_on_curve(int.from_bytes(point, 'little')))

  def test_orders_are_drawn(self):
    """What is sent back in the order of a list does not tell that list."""
    points = alignment.hashed(list(range(30)))
    orders = {tuple(alignment.Participant(points)._order) for _ in range(3)}
    self.assertLen(orders, 3)

  def test_what_is_no_point_is_refused(self):
    party = alignment.Participant(alignment.hashed(['a']))
    for wrong in (b'short', bytes(32), 'text'):
      with self.assertRaisesRegex(ValueError, 'Expected points of 32 bytes'):
        party.raised([wrong])
    with self.assertRaisesRegex(ValueError, 'the 1 points back that were sent'):
      party.matched([], [])


@needs.cryptography
class CurveTest(absltest.TestCase):
  def test_multiples_commute_and_stay_in_the_group(self):
    points = [curve.point(b'%d' % i) for i in range(3)]
    one, other = curve.Secret(), curve.Secret()
    both = one.times(other.times(points))
    self.assertEqual(both, other.times(one.times(points)))
    self.assertNotIn(points[0], both)

  def test_it_multiplies_as_the_standard_says(self):
    """RFC 7748, section 5.2, the first vector."""
    number, given, expected = (
      bytes.fromhex(text)
      for text in (
        'a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4',
        'e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c',
        'c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552',
      )
    )
    self.assertEqual(curve.Secret(number).times([given]), [expected])


class ProgressTest(absltest.TestCase):
  def test_it_tells_how_far_it_is(self):
    seen = []
    alignment.hashed(list(range(600)), progress=seen.append)
    self.assertEqual(seen, [256, 256, 88])


if __name__ == '__main__':
  absltest.main()

"""Secret sharing: what shares give, and what they do not."""

import itertools
import os

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.secure_aggregation import shamir


class SharesTest(parameterized.TestCase):
  def test_the_field_is_one(self):
    """By Fermat, and as the smallest prime above 2^256: no field is needed."""
    p = shamir.PRIME
    self.assertTrue(all(pow(a, p - 1, p) == 1 for a in range(2, 40)))

  @parameterized.parameters((1, 1), (2, 3), (3, 5))
  def test_as_many_as_the_threshold_give_the_secret(self, threshold, count):
    points = [2, 7, 10**9, 3, 2**31][:count]
    for secret in (bytes(32), b'\xff' * 32, os.urandom(32)):
      shares = shamir.split(secret, points, threshold)
      for some in itertools.combinations(range(count), threshold):
        found = shamir.join(
          [points[i] for i in some], [shares[i] for i in some]
        )
        self.assertEqual(found, secret)
      self.assertEqual(shamir.join(points, shares), secret)

  def test_fewer_fit_every_secret(self):
    """To t - 1 shares and any secret there is a last share."""
    shares = shamir.split(b'a' * 32, [1, 2, 3], 3)
    other = int.from_bytes(b'b' * 32, 'big')
    first, second = (int.from_bytes(share, 'big') for share in shares[:2])
    # The polynomial through (0, other), (1, first), (2, second), at 3.
    last = (other - 3 * first + 3 * second) % shamir.PRIME
    forged = last.to_bytes(shamir.SHARE_BYTES, 'big')
    found = shamir.join([1, 2, 3], [*shares[:2], forged])
    self.assertEqual(found, b'b' * 32)

  def test_shares_differ_every_time(self):
    secret = os.urandom(32)
    self.assertNotEqual(
      shamir.split(secret, [1, 2], 2), shamir.split(secret, [1, 2], 2)
    )

  @parameterized.parameters(
    (b'short', [1, 2], 2, '32 bytes'),
    (bytes(32), [1, 2], 3, 'threshold'),
    (bytes(32), [1, 2], 0, 'threshold'),
    (bytes(32), [0, 1], 2, 'points'),
    (bytes(32), [1, 1], 2, 'points'),
  )
  def test_mistakes(self, secret, points, threshold, message):
    with self.assertRaisesRegex(ValueError, message):
      shamir.split(secret, points, threshold)

  def test_what_is_no_secret_is_refused(self):
    value = (shamir.PRIME - 1).to_bytes(shamir.SHARE_BYTES, 'big')
    with self.assertRaisesRegex(ValueError, 'one secret'):
      shamir.join([1], [value])


if __name__ == '__main__':
  absltest.main()

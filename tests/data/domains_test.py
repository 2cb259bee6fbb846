"""Laws of domains: the same things, shown in another way by other clients."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import domains

DOMAINS = ('upright', 'inverted', 'rotated')


def _pictures():
  rng = np.random.default_rng(1)
  pictures = rng.random((60, 4, 4, 1)).astype(np.float32)
  return pictures, np.arange(60) % 5


class DomainsTest(parameterized.TestCase):
  def test_a_client_shows_its_own_pictures_in_its_own_way(self):
    pictures, classes = _pictures()
    shown, keys = domains.deal(pictures, classes, DOMAINS, 0)
    self.assertEqual(shown.dtype, np.float32)
    self.assertCountEqual(
      np.unique(keys), ['upright 0', 'inverted 1', 'rotated 2']
    )
    np.testing.assert_array_equal(
      shown[keys == 'upright 0'], pictures[keys == 'upright 0']
    )
    inverted = keys == 'inverted 1'
    np.testing.assert_allclose(shown[inverted] + pictures[inverted], 1)
    rotated = keys == 'rotated 2'
    np.testing.assert_array_equal(
      shown[rotated][:, 0], pictures[rotated][:, :, -1]
    )

  def test_clients_have_as_many_of_every_class(self):
    pictures, classes = _pictures()
    _, keys = domains.deal(pictures, classes, DOMAINS * 2, 0)
    for key in np.unique(keys):
      counts = np.bincount(classes[keys == key])
      np.testing.assert_array_equal(counts, [2] * 5)

  def test_the_seed_says_who_has_what(self):
    pictures, classes = _pictures()
    one, again, other = (
      domains.deal(pictures, classes, DOMAINS, seed)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    self.assertTrue((one != other).any())

  @parameterized.parameters(*domains.TRANSFORMATIONS)
  def test_nothing_is_lost(self, name):
    pictures = _pictures()[0]
    transform = domains.TRANSFORMATIONS[name]
    times = 4 if name == 'rotated' else 2
    found = pictures
    for _ in range(times):
      found = transform(found)
    np.testing.assert_allclose(found, pictures, atol=1e-6)
    if name != 'upright':
      self.assertGreater(np.abs(transform(pictures) - pictures).max(), 0.1)

  @parameterized.parameters(
    (('upright', 'askew'), "got 'askew'"),
    ((), 'got 0'),
    (('upright',) * 61, 'at most 60 clients, .* got 61'),
  )
  def test_other_domains_are_refused(self, names, sentence):
    with self.assertRaisesRegex(ValueError, f'Expected `domains` .*{sentence}'):
      domains.deal(*_pictures(), names, 0)


if __name__ == '__main__':
  absltest.main()

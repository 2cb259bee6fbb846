"""Masks: keystreams that numbers are added to."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.secure_aggregation import masks

from tests import needs


def _mask(key, size):
  values = np.zeros(size, np.uint32)
  masks.apply(values, (key,))
  return values


@needs.cryptography
class MasksTest(parameterized.TestCase):
  def test_the_keystream_is_encrypted_counters(self):
    """AES-256 of the counters 0, 1, 2, block by block."""
    from cryptography.hazmat.primitives.ciphers import algorithms
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers import modes

    key = bytes(range(32))
    blocks = b''.join(i.to_bytes(16, 'big') for i in range(3))
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    expected = np.frombuffer(encryptor.update(blocks), '<u4')
    np.testing.assert_array_equal(_mask(key, 11), expected[:11])

  def test_long_masks_begin_as_short_ones(self):
    long = _mask(b'k' * 32, 100_001)
    np.testing.assert_array_equal(long[:999], _mask(b'k' * 32, 999))
    self.assertGreater(len(np.unique(long)), 99_990)

  def test_every_byte_of_the_key_counts(self):
    found = {_mask(bytes(32), 4).tobytes()}
    for i in range(32):
      key = bytearray(32)
      key[i] = 1
      found.add(_mask(bytes(key), 4).tobytes())
    self.assertLen(found, 33)

  @parameterized.parameters(0, 1, 5, 70_000)
  def test_what_is_added_can_be_subtracted(self, size):
    values = np.arange(size, dtype=np.uint32)
    masked = values.copy()
    keys = [bytes([i]) * 32 for i in range(4)]
    masks.apply(masked, keys[:2], keys[2:])
    expected = values + _mask(keys[0], size) + _mask(keys[1], size)
    expected -= _mask(keys[2], size) + _mask(keys[3], size)
    np.testing.assert_array_equal(masked, expected)
    masks.apply(masked, keys[2:], keys[:2])
    np.testing.assert_array_equal(masked, values)


if __name__ == '__main__':
  absltest.main()

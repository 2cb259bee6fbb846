"""Keys: agreement, sealed messages, and the package that they need."""

import pickle
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.secure_aggregation import keys

from tests import needs


@needs.cryptography
class AgreementTest(parameterized.TestCase):
  def test_both_know_the_same_keys(self):
    first, second = keys.KeyPair(), keys.KeyPair()
    found = first.agree(second.public, b'a', b'b')
    self.assertEqual(found, second.agree(first.public, b'a', b'b'))
    self.assertNotEqual(*found)
    third = keys.KeyPair().agree(second.public, b'a')
    self.assertNotIn(third[0], found)

  def test_a_pair_is_that_of_its_private_key(self):
    pair = keys.KeyPair()
    for other in (
      keys.KeyPair(pair.private),
      pickle.loads(pickle.dumps(pair)),
    ):
      self.assertEqual(other.public, pair.public)

  @parameterized.parameters(bytes(32), b'short')
  def test_what_is_no_public_key_is_refused(self, public):
    with self.assertRaisesRegex(keys.RefusedError, 'public key of X25519'):
      keys.KeyPair().agree(public, b'a')


@needs.cryptography
class SealTest(parameterized.TestCase):
  def test_opened_is_what_was_sealed(self):
    sealed = keys.seal(b'k' * 32, b'text', b'context')
    self.assertLen(sealed, 4 + 12 + 16)
    self.assertEqual(keys.unseal(b'k' * 32, sealed, b'context'), b'text')
    self.assertNotEqual(keys.seal(b'k' * 32, b'text', b'context'), sealed)

  def test_what_was_changed_is_refused(self):
    sealed = keys.seal(b'k' * 32, b'text', b'context')
    wrong = [(b'l' * 32, sealed, b'context'), (b'k' * 32, sealed, b'other')]
    for i in range(len(sealed)):
      changed = bytearray(sealed)
      changed[i] ^= 1
      wrong.append((b'k' * 32, bytes(changed), b'context'))
    wrong.append((b'k' * 32, sealed[:5], b'context'))
    for arguments in wrong:
      with self.assertRaisesRegex(keys.RefusedError, 'changed on their way'):
        keys.unseal(*arguments)


class MissingPackageTest(absltest.TestCase):
  def test_the_sentence_names_the_extra(self):
    keys.library.cache_clear()
    self.addCleanup(keys.library.cache_clear)
    hidden = dict.fromkeys(
      ['cryptography', *(n for n in sys.modules if 'cryptography.' in n)]
    )
    with (
      mock.patch.dict(sys.modules, hidden),
      self.assertRaisesRegex(ValueError, r"pip install 'fmtl_jax\[secure\]'"),
    ):
      keys.KeyPair()


if __name__ == '__main__':
  absltest.main()

"""Messages: bytes and back."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.secure_aggregation import messages

ALL = (
  messages.Advertisement('round 1', 3, b'a' * 32, b'b' * 32),
  messages.Roster('r', (1, 2), (b'a', b'bc'), (b'', b'd')),
  messages.Shares('r', 0, (2**40, 1), (b'x', b'yz')),
  messages.Delivery('', (), ()),
  messages.MaskedInput('Größe', 1, bytes(range(256))),
  messages.UnmaskRequest('r', (1, 2, 3), ()),
  messages.UnmaskReply('r', 1, (1,), (b'share',)),
)


class EncodingTest(parameterized.TestCase):
  @parameterized.parameters(*ALL)
  def test_decoded_is_what_was_encoded(self, message):
    data = messages.encode(message)
    self.assertLen(data, messages.num_bytes(message))
    self.assertEqual(messages.decode(data), message)

  def test_numbers_are_sent_as_four_bytes_each(self):
    message = messages.MaskedInput('r', 1, bytes(4 * 10**5))
    self.assertLess(messages.num_bytes(message), 4 * 10**5 + 32)

  @parameterized.parameters(*ALL)
  def test_fields_are_bytes_numbers_and_tuples_of_them(self, message):
    for field in dataclasses.fields(message):
      self.assertIn(
        field.type, (str, int, bytes, tuple[int, ...], tuple[bytes, ...])
      )

  @parameterized.parameters(*ALL)
  def test_what_is_none_is_refused(self, message):
    data = messages.encode(message)
    for wrong in (data[:-1], data + b'x', b'\x63' + data[1:], b''):
      with self.assertRaisesRegex(ValueError, 'message of secure aggregation'):
        messages.decode(wrong)


if __name__ == '__main__':
  absltest.main()

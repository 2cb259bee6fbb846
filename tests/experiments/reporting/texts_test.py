"""Laws of texts: numbers have as many digits as they need."""

from absl.testing import absltest
from absl.testing import parameterized

from experiments.reporting import texts


class TextsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, '0 B'),
    (1023, '1023 B'),
    (1024, '1 KiB'),
    (1536, '1.50 KiB'),
    (123_456, '121 KiB'),
    (0.25, '0.250 B'),
    (5 * 1024**5, '5120 TiB'),
  )
  def test_bytes_have_three_digits_or_more(self, count, expected):
    self.assertEqual(texts.human_bytes(count), expected)


if __name__ == '__main__':
  absltest.main()

"""Laws of hints: the nearest name is shown, and modules can be imported."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized

from experiments.configuration import hints


class NearestTest(absltest.TestCase):
  def test_a_near_name_is_a_hint(self):
    hint = hints.nearest('smal', ['small', 'tiny'])
    self.assertEqual(hint, " Did you mean 'small'?")

  def test_a_name_without_a_near_one_has_no_hint(self):
    self.assertEqual(hints.nearest('xyz', ['small', 'tiny']), '')


class ShortTest(parameterized.TestCase):
  @parameterized.parameters(
    ([], ''),
    (['a'], 'a'),
    (['a', 'b'], 'a, b'),
    (['a', 'b', 'c'], 'a, b and 1 more'),
  )
  def test_of_many_names_the_first_are_listed(self, names, expected):
    self.assertEqual(hints.listed(names, most=2), expected)

  def test_a_value_is_one_short_line(self):
    self.assertEqual(hints.shown({'a': 1}), "{'a': 1}")
    found = hints.shown(['x' * 50, 'y' * 50])
    self.assertLen(found, 60)
    self.assertEndsWith(found, '...')


class ModuleTest(parameterized.TestCase):
  @parameterized.parameters('main', 'export', 'configuration.config')
  def test_a_module_of_a_sentence_is_there(self, name):
    found = hints.module(name)
    self.assertEqual(found, f'experiments.{name}')
    self.assertIsNotNone(importlib.util.find_spec(found))


if __name__ == '__main__':
  absltest.main()

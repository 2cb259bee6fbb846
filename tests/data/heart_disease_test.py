"""Hospitals: what is missing is said, and not taken for a finding."""

import pathlib
import tempfile

from absl.testing import absltest
import numpy as np

from fmtl_jax.data import heart_disease
from tests.data import small_tables


class HeartDiseaseTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    small_tables.write(self.folder)

  def test_missing_findings_and_severities(self):
    table = heart_disease.load(self.folder)
    self.assertCountEqual(np.unique(table.keys), heart_disease.HOSPITALS)
    disease, severity = table.labels.T
    hungary = table.keys == 'Hungary'
    self.assertTrue(np.isnan(severity[hungary]).all())
    self.assertFalse(np.isnan(disease).any())
    np.testing.assert_array_equal(severity[~hungary] > 0, disease[~hungary])
    self.assertSetEqual(set(severity[~hungary].tolist()), {0, 1, 2, 3, 4})
    columns = dict(zip(table.feature_names, table.features.T, strict=True))
    swiss = table.keys == 'Switzerland'  # Nobody's cholesterol is 0.
    np.testing.assert_array_equal(columns['chol missing'], swiss)
    np.testing.assert_array_equal(columns['chol'][swiss], 240)
    self.assertTrue(columns['fbs missing'].all())
    self.assertFalse(columns['trestbps missing'].any())
    for hospital in heart_disease.HOSPITALS:  # With and without a point.
      rows = table.keys == hospital
      self.assertEqual(columns['restecg 1'][rows].sum(), 4)
      np.testing.assert_array_equal(columns['oldpeak'][rows], 1.5)

  def test_damaged_files_are_refused(self):
    path = self.folder / heart_disease.HOSPITALS['Hungary']
    text = path.read_text()
    for damaged, sentence in (
      (text.replace(',7,1\n', ',7,9\n'), 'last column to be 0 to 4'),
      (text.replace(',7,', ','), 'Expected 14 values in every row of .*hung'),
      (text.replace(',7,', ',8,'), "column 'thal' to have one of 3, 6, 7"),
    ):
      path.write_text(damaged)
      with self.assertRaisesRegex(ValueError, sentence):
        heart_disease.load(self.folder)
    path.unlink()
    with self.assertRaisesRegex(ValueError, 'put the processed files of http'):
      heart_disease.load(self.folder)


if __name__ == '__main__':
  absltest.main()

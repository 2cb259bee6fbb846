"""Laws of notes on data: they count what there is."""

import dataclasses

from absl.testing import absltest
import numpy as np

from experiments.building import data_notes
from experiments.building import federating
from tests.experiments.building import toy_sources


class OverlapTest(absltest.TestCase):
  def test_a_random_split_overlaps_and_a_blocked_one_does_not(self):
    found = {}
    for protocol in ('random', 'blocked'):
      data = toy_sources.data(partition='key', protocol=protocol)
      dataset = federating.federate(toy_sources.people(), data, 0)
      found[protocol] = data_notes.overlapping_pairs(
        toy_sources.people(), dataset
      )
    self.assertGreater(found['random'], 30)
    self.assertEqual(found['blocked'], 0)

  def test_data_without_an_order_in_time_have_no_overlap(self):
    source = toy_sources.shared()
    dataset = federating.federate(source, toy_sources.data(), 0)
    self.assertEqual(data_notes.overlapping_pairs(source, dataset), 0)

  def test_pairs_are_counted_whoever_holds_them(self):
    source = toy_sources.people()._replace(shared_labels=True)
    data = toy_sources.data(partition='iid', clients=6, protocol='random')
    found = data_notes.overlapping_pairs(
      source, federating.federate(source, data, 0)
    )
    self.assertGreater(found, 0)


class DescribeTest(absltest.TestCase):
  def test_missing_labels_are_not_counted(self):
    source = toy_sources.shared()
    labels = source.labels.copy()
    labels[:, 0] = np.where(
      np.arange(toy_sources.EXAMPLES) < 200, np.nan, labels[:, 0]
    )
    data = toy_sources.data(tasks_per_client=2)
    full, part = (
      data_notes.describe(federating.federate(s, data, 0))
      for s in (source, source._replace(labels=labels))
    )
    for text in (full, part):
      self.assertIn('task 0', text)
      self.assertIn('task 1', text)
    self.assertNotEqual(full, part)

  def test_values_behind_missing_labels_do_not_matter(self):
    dataset = federating.federate(toy_sources.shared(), toy_sources.data(), 0)
    hidden = dataclasses.replace(
      dataset.examples,
      present=np.arange(toy_sources.EXAMPLES)[:, None] % 3 > [[0, 1]],
    )
    garbage = dataclasses.replace(
      hidden, labels=np.where(hidden.present, hidden.labels, 7)
    )
    texts = [
      data_notes.describe(dataclasses.replace(dataset, examples=examples))
      for examples in (hidden, garbage)
    ]
    self.assertEqual(*texts)


if __name__ == '__main__':
  absltest.main()

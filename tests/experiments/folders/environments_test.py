"""Laws: a report names every environment that trained, and claims no more."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.folders import environments

THERE = {'jax': '1', 'deterministic': True}
HERE = {'jax': '2', 'deterministic': True}
LOOSE = {'jax': '2', 'deterministic': False}


def spans_of(*processes):
  """The spans of a case: environment and last round of each process."""
  spans, done = [], 0
  for found, last in processes:
    with mock.patch.object(environments, 'environment', return_value=found):
      spans = environments.extended(spans, done + 1, last)
    done = last
  return spans


class SpansTest(parameterized.TestCase):
  def test_rounds_of_one_environment_are_one_span(self):
    (span,) = spans_of((THERE, 2), (THERE, 5))
    self.assertEqual((span['environment'], span['rounds']), (THERE, [1, 5]))

  def test_each_environment_has_its_rounds(self):
    found = spans_of((THERE, 2), (HERE, 3), (THERE, 7))
    self.assertEqual(
      [(s['environment'], s['rounds']) for s in found],
      [(THERE, [1, 2]), (HERE, [3, 3]), (THERE, [4, 7])],
    )

  @parameterized.parameters(
    ([THERE], True),
    ([THERE, HERE], True),
    ([THERE, LOOSE], False),
    ([LOOSE, THERE], False),
    ([None, THERE], False),
  )
  def test_a_run_is_deterministic_only_if_all_of_it_was(self, of, wanted):
    cases = {
      str(number): spans_of((found, 3)) for number, found in enumerate(of)
    }
    summary = environments.summary(cases)
    self.assertIs(summary['environment']['deterministic'], wanted)
    self.assertLen(summary['environments'], len(of))

  def test_the_environment_is_that_of_the_last_process(self):
    later = spans_of((THERE, 2), (HERE, 3))
    for cases in ({'a': later, 'b': spans_of((THERE, 1))},):
      cases['b'][0]['until'] = '2000-01-01T00:00:00+00:00'
      found = environments.summary(cases)
      self.assertEqual(found['environment']['jax'], '2')
      self.assertEqual(
        [e['cases'] for e in found['environments']],
        [{'b': [[1, 1]], 'a': [[1, 2]]}, {'a': [[3, 3]]}],
      )

  def test_an_environment_says_whether_it_is_deterministic(self):
    found = environments.environment()
    self.assertFalse(found['deterministic'])
    flags = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
    with mock.patch.dict(os.environ, XLA_FLAGS=flags):
      self.assertTrue(environments.environment()['deterministic'])


class OlderTest(parameterized.TestCase):
  """Of a folder without spans its report is known, if there is one."""

  RECORD = {'case': 'toy', 'rounds': 4}

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder, 'results.json')

  def summary(self):
    spans = environments.of_records([self.RECORD], self.path)
    found = environments.summary(spans)
    self.path.write_text(json.dumps(found), encoding='utf-8')
    return found

  @parameterized.parameters((False, False), (True, None))
  def test_what_it_says_is_that_of_its_last_process(self, there, kept):
    before = {'environment': {'jax': '0', 'deterministic': there}}
    self.path.write_text(json.dumps(before), encoding='utf-8')
    for _ in range(2):  # It is replaced, and read again.
      found = self.summary()
      (entry,) = found['environments']
      self.assertEqual(
        entry['environment'], {'jax': '0', 'deterministic': kept}
      )
      self.assertEqual(entry['cases'], {'toy': [[1, 4]]})
      self.assertEqual(found['environment']['jax'], '0')
      self.assertIs(found['environment']['deterministic'], False)

  @parameterized.parameters(None, b'', b'\xff', b'[]', b'{}', b'{"a": 1}')
  def test_nothing_is_known_without_one(self, content):
    if content is not None:
      self.path.write_bytes(content)
    for _ in range(2):
      found = self.summary()
      self.assertIsNone(found['environments'][0]['environment'])
      self.assertIsNone(found['environment']['jax'])
      self.assertIs(found['environment']['deterministic'], False)


if __name__ == '__main__':
  absltest.main()

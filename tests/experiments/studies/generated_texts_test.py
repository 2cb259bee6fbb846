"""Clients' models of a run write text."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import text_sources
from experiments.configuration import config as config_lib
from experiments.studies import generated_texts
from experiments.studies import models_of_runs
from experiments.studies import train
from configs import language
from fmtl_jax.data import texts
from tests.data import small_texts
from tests.experiments import commands


def setUpModule():
  commands.start()


def tearDownModule():
  commands.stop()


class GeneratedTextsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    (folder / 'texts').mkdir()
    small_texts.write_folder(folder / 'texts')
    cls.config = config = language.get_config('folder,smoke')
    config.data.manual_dir = str(folder / 'texts')
    config.cases = ('fedavg', 'fedem')
    config.cohort.clients_per_task = 0
    config.client.batch_size = 0
    config.run.rounds = 1
    cls.run_folder = folder / 'run'
    train.train_and_evaluate(config, cls.run_folder)

  def _text(
    self, case='fedavg', client='text/bob', seed=0, length=12, **settings
  ):
    return generated_texts.generate(
      self.run_folder, case, seed, client, length=length, **settings
    )

  def test_it_is_the_argmax_without_temperature(self):
    text = self._text(prompt='to ', temperature=0)
    self.assertLen(text, 15)
    everyone = text_sources.users(self.config.data)
    known = text_sources.vocabulary(self.config.data, everyone)
    model = models_of_runs.load(self.run_folder, 'fedavg', 0, client=1)
    tokens = known.encode(text)[:13]
    outputs = np.array(model.outputs(tokens[None]))[0]
    outputs[:, texts.UNKNOWN] = -np.inf
    np.testing.assert_array_equal(
      outputs[2:].argmax(-1), known.encode(text)[3:14]
    )

  @parameterized.parameters('fedavg', 'fedem')
  def test_the_same_draw_is_the_same_text(self, case):
    first, again, other = (self._text(case, draw=d) for d in (0, 0, 1))
    self.assertEqual(first, again)
    self.assertNotEqual(first, other)

  def test_a_client_has_an_id_and_a_name(self):
    self.assertEqual(self._text(client='text/cy'), self._text(client='2'))

  @parameterized.parameters(
    ({'client': 'text/bo'}, r"0 \(text/ann\), .* Did you mean 'text/bob'"),
    ({'case': 'ditto'}, "No checkpoint of 'ditto'"),
    ({'prompt': ''}, "Expected --prompt to have a character to read, got ''"),
    ({'temperature': -1.0}, 'Expected --temperature >= 0 .* got -1.0'),
    ({'temperature': np.nan}, 'Expected --temperature >= 0 .* got nan'),
    ({'draw': -1}, 'Expected --draw >= 0 .* got -1'),
    ({'length': 0}, 'Expected --length >= 1 .* got 0'),
    ({'seed': 7}, '[Ss]eed.* got 7'),
    ({'client': '9'}, "Expected --client .* got '9'"),
    ({'client': '-1'}, "Expected --client .* got '-1'"),
  )
  def test_what_is_not_there_is_refused(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      self._text(**settings)

  def test_a_run_on_other_data_is_refused(self):
    other = config_lib.copied(self.config)
    other.data.name = 'digits'
    found = mock.patch.object(
      models_of_runs, 'read_config', return_value=(other, {})
    )
    with found, self.assertRaisesRegex(ValueError, "on texts .* set 'digits'"):
      self._text()


class CommandTest(commands.CommandTestCase):
  MODULE = 'generate'

  def test_what_cannot_write_is_one_sentence(self):
    run = ('--case=fedavg', '--client=0')
    self.check_mistake('Give --workdir', *run)
    self.check_mistake('none', '--workdir=none', *run)
    self.check_mistake('Give --client', '--workdir=none', '--case=fedavg')
    self.check_mistake('length', '--workdir=none', '--length=many', *run)


if __name__ == '__main__':
  absltest.main()

"""Law: a mistake on the command line is one sentence, and writes nothing."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import execution
from fmtl_jax import models
from fmtl_jax import predictors
from fmtl_jax.running import kept_ceilings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands
from tests.experiments.studies import train_test

ROOT, DIGITS, HAR = commands.ROOT, commands.DIGITS, commands.HAR
SMALL = commands.SMALL

setUpModule = commands.start
tearDownModule = commands.stop


class MainTest(commands.CommandTestCase):
  MODULE = 'main'

  @parameterized.parameters(
    ((), '--config'),
    (('--config=digits.py',), "There is no config file 'digits.py'"),
    (
      (f'--config={DIGITS.parent}/digit.py',),
      "There is no config file .*digit.py'. Files there: .*digits.py",
    ),
    ((f'--config={DIGITS}:smok',), "variant 'smok' .* Did you mean 'smoke'"),
    ((f'--config={DIGITS}:smoke,tiny',), "variant 'tiny' .* known are smoke"),
    (
      (*SMALL, '--config.client.learning_rat=1'),
      "config field 'client.learning_rat'. Did you mean 'client.learning_rate'",
    ),
    (
      (*SMALL, '--config.clent.learning_rate=1'),
      "config field 'clent.learning_rate'. Did you mean 'client.learning_rate'",
    ),
    (
      (*SMALL, '--config.overrides.fedavg.client.learning_rate=1'),
      "config field 'overrides.fedavg.client.learning_rate'",
    ),
    ((*SMALL, '--config.client=1'), "config field 'client'"),
    (
      (*SMALL, '--config.client.learning_rate=fast'),
      "--config.client.learning_rate to be like 0.1, got 'fast'",
    ),
    (
      (*SMALL, '--config.run.rounds', '2.5'),
      "--config.run.rounds to be like 4, got '2.5'",
    ),
    (
      (*SMALL, '--config.data.standardize=maybe'),
      "--config.data.standardize to be like False, got 'maybe'",
    ),
    ((*SMALL, '--dryrun'), "flag 'dryrun'. Did you mean: dry_run"),
    ((*SMALL, '--cases=fedawg'), "case 'fedawg'; .* Did you mean 'fedavg'"),
    (
      (*SMALL, '--config.algorithm.name=fedprx'),
      "algorithm.name 'fedprx'; .* Did you mean 'fedprox'",
    ),
    (
      (*SMALL, "--config.layer_types=(('.*', 'common'), ('head', 'task'))"),
      r"rule \('head', 'task'\) covers no parameter .* Correct or remove",
    ),
    (
      (*SMALL, "--config.layer_types=(('dense_0/.*', 'common'),)"),
      "No rule of layer_types covers the parameter 'output/bias'; add one",
    ),
    (
      (*SMALL, '--config.cohort.clients_per_task=2'),
      "clients_per_task <= 1 .the smallest task group, 'odd'., got 2",
    ),
    ((*SMALL, '--config.data.clients=2000'), '2000'),
    ((*SMALL, '--config.data.clients=4'), 'Expected data.clients >= 5'),
    (
      (
        *SMALL,
        '--config.data.tasks_per_client=2',
        '--config.data.coverage=(1.0, 1.0, 0.0, 0.0, 0.0)',
      ),
      'Expected data.coverage above 0',
    ),
    (
      (
        *SMALL,
        '--config.data.test_fraction=0.5',
        '--config.data.validation_fraction=0.5',
      ),
      'with a sum below 1, got 0.5 and 0.5',
    ),
    ((*SMALL, '--config.run.rounds=-1'), 'Expected run.rounds >= 1, got -1'),
    (
      (f'--config={HAR}', '--config.data.manual_dir=nowhere'),
      'Expected manual_dir to be a folder.* https?://',
    ),
    (
      (*SMALL, '--config.algorithm.pretrained_layers=1'),
      'name the folder with their parameters in model.pretrained',
    ),
    (
      (
        *SMALL,
        '--config.algorithm.pretrained_layers=1',
        '--config.model.pretrained=nowhere',
      ),
      'No saved model in .*nowhere: model.json is missing',
    ),
    (
      (*SMALL, '--config.execution.name=pmap'),
      "'auto', 'scan', 'vmap', 'chunk', 'low_rank' .*got 'pmap'",
    ),
    ((f'--workdir={DIGITS}', *SMALL), 'is a file; name a folder'),
    ((f'--workdir={ROOT}', *SMALL), 'files of something else; name a new'),
  )
  def test_a_mistake_is_one_sentence(self, arguments, sentence):
    self.check_mistake(sentence, *arguments)

  @parameterized.parameters(
    ('--cases=fedawg', "case 'fedawg'"),
    ('--config.run.rounds=-1', 'Expected run.rounds >= 1'),
    ('--config.execution.name=pmap', "got 'pmap'"),
  )
  def test_a_dry_run_finds_mistakes_too(self, argument, sentence):
    self.check_mistake(sentence, *SMALL, argument, '--dry_run')

  def test_the_folder_of_another_run_is_refused(self):
    workdir = self.cwd / 'other'
    (workdir / 'cases').mkdir(parents=True)
    identity = {'run.rounds': 3, 'command_line': []}
    (workdir / 'config.json').write_text(
      json.dumps({'identity': identity, 'config': {}})
    )
    self.check_mistake(
      'other holds another run: it differs in .* name a new folder',
      *SMALL,
      '--workdir=other',
    )

  def test_a_dry_run_says_whose_ceilings_decide(self):
    dry = (*SMALL, '--cases=multi_task_fl', '--dry_run')
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=commands.CACHE.name):
      file = kept_ceilings.keep(execution.Ceilings(1e11, 1e10))
    try:
      _, output, errors = self.run_command(*dry)
    finally:
      file.unlink()
    self.assertIn(f'by the ceilings in {file}\n', output, errors)
    self.assertNotIn('by the ceilings', self.run_command(*dry)[1])

  def test_a_dry_run_describes_and_writes_nothing(self):
    before = sorted(self.cwd.rglob('*'))
    code, output, errors = self.run_command(
      *SMALL,
      '--cases=majority,multi_task_fl,centralized_joint',
      '--config.algorithm.personal_layers=1',
      '--config.algorithm.task_layers=0',
      '--config.execution.name=low_rank',
      '--dry_run',
    )
    self.assertEqual(code, 0, errors)
    self.assertEqual(sorted(self.cwd.rglob('*')), before)
    partition, *sections = re.split(
      r'\n.+ \((centralized_joint|multi_task_fl)\)\n', output
    )
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    for word in ('Partition', 'odd', 'prime'):
      self.assertIn(word, partition)
    for text, lines in (
      (
        texts['multi_task_fl'],
        (
          r'dense_0/kernel +\(64, 4\) +common +1\n',
          r'output/bias +\(1,\) +personal +5 x 1\n',
          'distinct parameters: .*common 260, task 0, personal 25',
          r'  unlike its paper: Weights are divided by their sum by default;',
        ),
      ),
      (
        texts['centralized_joint'],
        (
          r'output/bias +\(1,\) +task +5\n',
          'distinct parameters: .*common 260, task 25, personal 0',
        ),
      ),
    ):
      for line in (
        *lines,
        'bytes of one copy, each way: common 1,040',
        r'memory for temporaries of a round: [0-9.]+ MiB',
        r'execution: scan on \d+ cpu device\(s\), 1 run\(s\) mapped\n'
        r'    low_rank: not taken, scan is: no kernel is factored\n'
        r'    dense_0/kernel: not factored: ',
      ):
        self.assertRegex(text, line)

  def test_a_run_that_diverges_ends_with_one_sentence(self):
    code, _, errors = self.run_command(
      *SMALL, '--config.client.learning_rate=1e38', '--workdir=diverged'
    )
    self.assertRegex(
      errors,
      '^(Multi-task FL: round .*\n)+'
      'error: Multi-task FL: the loss of client . on task .* was not finite '
      r'in round \d .seed 0.; use a smaller learning rate, or leave such '
      r'clients out of a round with faults.nonfinite=skip_client.\n$',
    )
    self.assertEqual(code, 1)

  def test_a_traceback_is_shown_on_demand(self):
    code, _, errors = self.run_command(*SMALL, '--cases=x', '--debug')
    self.assertEqual(code, 1)
    self.assertRegex(errors, "(?s)^Traceback .*ValueError: Unknown case 'x'")


class SweepTest(commands.CommandTestCase):
  MODULE = 'sweep'

  @parameterized.parameters(
    ((), '--sweep'),
    (('--sweep=grid.py',), "There is no sweep file 'grid.py'"),
    (
      (f'--sweep={commands.GRID}', '--sweep.client.learning_rates=(0.1,)'),
      "sweep field 'client.learning_rates'. Did you mean",
    ),
    (
      (f'--sweep={commands.GRID}', '--sweep.client.learning_rate=0.1x'),
      "field 'client.learning_rate' to be like .*, got '0.1x'",
    ),
    (('--sweep=no_tuple.py',), r'Expected a tuple .* \(0.1,\)'),
    (('--sweep=unknown.py',), "field 'client.learning'. Did you mean"),
    (('--sweep=seeds.py',), "'run.seeds' cannot be swept"),
  )
  def test_a_mistake_is_one_sentence(self, arguments, sentence):
    for name, field, value in (
      ('no_tuple', 'learning_rate', 0.1),
      ('unknown', 'learning', (0.1,)),
      ('seeds', 'seeds', (1, 2)),
    ):
      section = 'run' if name == 'seeds' else 'client'
      (self.cwd / f'{name}.py').write_text(
        'import ml_collections\n'
        'def get_config():\n'
        f'  fields = {{{section!r}: {{{field!r}: {value!r}}}}}\n'
        '  return ml_collections.ConfigDict(fields)\n'
      )
    self.check_mistake(sentence, *SMALL, *arguments)


class CompareTest(commands.CommandTestCase):
  MODULE = 'compare'

  @parameterized.parameters(
    (('--config.compare.seeds=0',), 'Expected compare.seeds >= 1'),
    (('--config.compare.seed=1',), "field 'compare.seed'. Did you mean"),
    (('--config.client.learning_rate=0.1',), 'which the search chooses'),
    (('--cases=fedawg',), "case 'fedawg'; .* Did you mean 'fedavg'"),
    (('--cases=multi_task_fl_two_tasks',), 'the same data.tasks_per_client'),
    ((f'--workdir={ROOT}',), 'files of something else; name a new'),
  )
  def test_a_mistake_is_one_sentence(self, arguments, sentence):
    self.check_mistake(
      sentence, *commands.SMALL_COMPARISON, *arguments, '--dry_run'
    )
    arguments = ('--workdir=new', *arguments)
    code, _, errors = self.run_command(*commands.SMALL_COMPARISON, *arguments)
    self.assertRegex(errors, f'^error: .*{sentence}')
    self.assertEqual(code, 2)
    self.assertEmpty(list(self.cwd.iterdir()))

  def test_a_dry_run_describes_and_writes_nothing(self):
    code, output, errors = self.run_command(
      *commands.SMALL_COMPARISON, '--dry_run'
    )
    self.assertEqual(code, 0, errors)
    self.assertIn('2 algorithms, each with', output)
    self.assertIn('Isolated (isolated)\n', output)
    self.assertEmpty(list(self.cwd.iterdir()))


class UnseenTest(commands.CommandTestCase):
  MODULE = 'unseen'

  @parameterized.parameters(
    (('--config.unseen.clients=6',), 'Expected unseen.clients <= 5'),
    (('--config.unseen.examples=(5,2)',), 'in ascending order'),
    (('--config.unseen.example=(5,)',), 'Did you mean'),
    (('--cases=fedawg',), "case 'fedawg'; .* Did you mean 'fedavg'"),
    ((f'--workdir={ROOT}',), 'files of something else; name a new'),
  )
  def test_a_mistake_is_one_sentence(self, arguments, sentence):
    arguments = ('--workdir=new', *arguments)
    self.check_mistake(
      sentence, *commands.SMALL_UNSEEN, *arguments, '--dry_run'
    )
    self.check_mistake(sentence, *commands.SMALL_UNSEEN, *arguments)

  def test_a_dry_run_describes_and_writes_nothing(self):
    code, output, errors = self.run_command(*commands.SMALL_UNSEEN, '--dry_run')
    self.assertEqual(code, 0, errors)
    self.assertIn('FedRep (fedrep): held-out clients adapt output', output)
    self.assertEmpty(list(self.cwd.iterdir()))


class ExportTest(commands.CommandTestCase):
  MODULE = 'export'

  @parameterized.parameters(
    ((), 'Give --workdir'),
    (('--workdir=run',), 'Give --case'),
    (('--workdir=run', '--case=isolated'), 'Give --output'),
    (('--task=odd', '--client=0'), 'Give either --task or --client'),
    ((), 'Give either --task or --client'),
    (('--task=odd',), 'No run in run: config.json is missing'),
    (('--client=first',), 'No run in run: config.json is missing'),  # An id.
  )
  def test_a_mistake_is_one_sentence(self, arguments, sentence):
    if not sentence.startswith('Give --'):
      arguments = (
        '--workdir=run',
        '--case=isolated',
        '--output=out',
        *arguments,
      )
    self.check_mistake(sentence, *arguments)

  def test_a_model_of_a_run_is_saved(self):
    code, _, errors = self.run_command(
      *SMALL, '--config.run.rounds=1', '--workdir=run', module='main'
    )
    self.assertEqual(code, 0, errors)
    arguments = (
      *('--workdir=run', '--case=multi_task_fl', '--task=prime'),
      '--output=model',
    )
    code, output, errors = self.run_command(*arguments)
    self.assertEqual(code, 0, errors)
    self.assertIn("The model for 'prime' is in model;", output)
    network = models.mlp((8, 8, 1), (4,), 1)
    model = predictors.Predictor.load(self.cwd / 'model', network.apply)
    self.assertEqual(model.task.name, 'prime')
    self.assertEqual(model.outputs(np.zeros((2, 8, 8, 1))).shape, (2, 1))


class InterruptTest(commands.CommandTestCase):
  MODULE = 'main'

  def start(self, *command):
    process = subprocess.Popen(
      (sys.executable, '-m', *command),
      cwd=self.cwd,
      env=commands.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    return process

  def test_ctrl_c_saves_and_the_command_that_is_shown_resumes(self):
    command = (
      *SMALL,
      '--config.run.rounds=16',
      '--config.run.evaluate_every=1',
    )
    stopped = self.start(
      *('experiments.main', *command),
      '--config.checkpoint.every_rounds=1',
      *('--workdir', 'a folder'),
    )
    states = self.cwd / 'a folder' / 'checkpoints' / 'multi_task_fl'
    while not list(states.glob('[0-9]*')) and stopped.poll() is None:
      time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate()
    self.assertEqual(stopped.returncode, 128 + signal.SIGINT, errors)
    self.assertNotIn('Traceback', errors)
    shown: Any = re.search(
      '^Stopped by SIGINT; .* To resume: (.*)$', errors, re.M
    )
    self.assertIsNotNone(shown, errors)
    python, option, module, *again = shlex.split(shown.group(1))
    self.assertEqual(
      (python, option, module), ('python', '-m', 'experiments.main')
    )
    self.assertFalse((self.cwd / 'a folder' / 'results.json').exists())
    for arguments in (again, (*command, '--workdir=whole')):
      code, _, errors = self.run_command(*arguments)
      self.assertEqual(code, 0, errors)
    found, wanted = (
      train_test.read_json(self.cwd / name / 'cases' / 'multi_task_fl.json')
      for name in ('a folder', 'whole')
    )
    self.assertEqual(
      train_test.without_times(found), train_test.without_times(wanted)
    )

  def test_a_comparison_that_is_stopped_says_how_to_resume_it(self):
    process = self.start(
      'experiments.compare',
      *commands.SMALL_COMPARISON,
      *('--config.run.rounds=1000000', '--config.run.evaluate_every=1'),
      *('--config.checkpoint.every_rounds=1', '--workdir=a folder'),
    )
    states = self.cwd / 'a folder' / 'checkpoints' / 'isolated_search'
    while not list(states.glob('[0-9]*')) and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    self.assertEqual(process.returncode, 128 + signal.SIGTERM, errors)
    self.assertNotIn('Traceback', errors)
    self.assertRegex(
      errors,
      '(?m)^Stopped by SIGTERM; what was done is saved. To resume: python '
      r"-m experiments.compare .* --workdir='a folder'$",
    )


class HelpTest(commands.CommandTestCase):
  @parameterized.parameters(
    *('main', 'sweep', 'compare', 'series', 'unseen'),
    *('export', 'generate', 'gather'),
  )
  def test_it_shows_what_all_programs_share(self, module):
    _, output, _ = self.run_command('--help', module=module)
    shared = ['debug', 'deterministic']
    if module not in (
      'export',
      'generate',
      'gather',
    ):  # Their folder is that of a run.
      shared += ['config', 'resume', 'workdir']
    for name in shared:
      self.assertRegex(output, rf'(?m)^  --(\[no\])?{name}: ')
    self.assertIn('same bits again', output)


if __name__ == '__main__':
  absltest.main()

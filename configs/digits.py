"""Five tasks on handwritten digits: the paper's five cases without a download.

Source: Kececi et al. (2022), https://arxiv.org/abs/2207.08147, section V and
Table III, on scikit-learn's 1,797 digits (8 x 8) instead of faces: 50 clients
in five groups of ten, each with the labels of its own task only.

Command: python -m experiments.main --config=configs/digits.py
Variants: smoke, grid, cnn, dirichlet, pretrain, transfer, attacked,
coverage; they combine, as in :cnn,smoke.

Partial coverage, what balancing does for a task that few clients hold:
  python -m experiments.benchmarks.coverage --workdir=C \
      --config=configs/digits.py:coverage

Two-stage transfer: a network learns to tell the digits 0 to 4 centrally, and a
federation trains the rest of it on five tasks about 5 to 9:
  python -m experiments.main --config=configs/digits.py:pretrain --workdir=P
  python -m experiments.export --workdir=P --case=centralized_joint \
      --task=digit --output=M
  python -m experiments.main --config=configs/digits.py:transfer \
      --config.model.pretrained=M
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

# The best at the last round on validation data (configs/sweeps/digits.py).
_OVERRIDES = {
  'centralized_separate': {'client': {'learning_rate': 0.5, 'batch_size': 8}},
  'centralized_joint': {'client': {'learning_rate': 0.3, 'batch_size': 8}},
  'distributed_separate': {'client': {'learning_rate': 0.5, 'batch_size': 16}},
  'separate_fl': {'client': {'learning_rate': 0.3, 'batch_size': 8}},
  'multi_task_fl': {'client': {'learning_rate': 0.5, 'batch_size': 16}},
  'separate_fl_two_tasks': {'client': {'learning_rate': 0.5, 'batch_size': 16}},
  'multi_task_fl_two_tasks': {
    'client': {'learning_rate': 0.3, 'batch_size': 8}
  },
}


def smoke(config):
  """A few rounds of the distributed cases, in seconds."""
  config.cases = (
    'majority',
    'distributed_separate',
    'separate_fl',
    'multi_task_fl',
  )
  config.execution.compile_effort = 'low'
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def grid(config):
  """The search: validation data of seeds that the table does not use."""
  config.run.first_seed = 1000
  config.run.seeds = 4


def cnn(config):
  """A convolutional network."""
  config.model.name = 'cnn'
  config.model.channels = (16, 32)
  config.model.hidden = (64,)


def dirichlet(config):
  """Clients with skewed digits instead of alike ones."""
  config.data.partition = 'dirichlet'
  config.data.alpha = 0.5


def pretrain(config):
  """Which digit it is, of 0 to 4, learned centrally."""
  config.data.kind = 'low'
  config.data.clients = 10
  config.cases = ('centralized_joint',)
  config.report.curve_case = ''
  config.report.baseline = ''
  config.run.seeds = 1
  config.report.title = 'Digits 0 to 4: test accuracy (%)'


def transfer(config):
  """Five tasks about 5 to 9, behind a first layer trained on others."""
  config.data.kind = 'high'
  config.data.clients = 50
  config.cases = ('majority', 'distributed_separate', 'multi_task_fl')
  config.algorithm.pretrained_layers = 1
  config.report.title = 'Digits 5 to 9: test accuracy (%)'


def attacked(config):
  """A fifth of every task's clients attack; all clients take part.

  Common layers are reduced task by task: a robust reducer of all clients would
  take what one task does to them for an attack. Few clients with some fifty
  examples each and large batches make honest updates alike, on which robust
  reducers depend.
  """
  config.data.clients = 25
  config.cohort.clients_per_task = 0
  config.run.rounds = 150
  for name in ('multi_task_fl', 'multi_task_fl_two_tasks'):
    config.overrides[name].client.batch_size = 32
    config.overrides[name].client.learning_rate = 0.5
  config.reducer.within_tasks = True
  config.attack.name = 'sign_flip'


def coverage(config):
  """Clients hold two of the tasks, one of which a tenth of them have.

  A narrow encoder is shared by tasks that 80 % to 10 % of all clients hold, all
  of which take part. The learning rate is the best of 0.05 to 0.5 on validation
  data of other seeds, with weights by examples and by task alike.
  """
  config.cases = ('majority', 'multi_task_fl', 'mt_fedavg')
  config.data.tasks_per_client = 2
  config.data.coverage = (0.8, 0.1, 0.4, 0.4, 0.3)
  config.model.hidden = (32, 8)
  config.algorithm.task_layers = 1
  config.cohort.clients_per_task = 0
  config.cohort.slots = 'all'
  config.run.seeds = 10
  config.overrides.multi_task_fl.client.batch_size = 8
  config.overrides.multi_task_fl.client.learning_rate = 0.3
  config.client.learning_rate = 0.3
  config.report.baseline = 'multi_task_fl'


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'digits'
  config.cases = (
    'majority',
    'centralized_separate',
    'centralized_joint',
    'distributed_separate',
    'separate_fl',
    'multi_task_fl',
    'separate_fl_two_tasks',
    'multi_task_fl_two_tasks',
  )
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.1
  config.model.hidden = (64, 32)
  config.algorithm.task_layers = 2
  config.client.batch_size = 8
  config.client.local_epochs = 2
  config.cohort.clients_per_task = 5
  config.run.rounds = 100
  config.run.seeds = 5
  config.run.evaluate_every = 5
  config.overrides = ml_collections.ConfigDict(_OVERRIDES)
  config.report.title = 'Digits: test accuracy (%)'
  config.report.figure_formats = ('pdf', 'svg')
  return config_lib.apply_variants(
    config,
    variants,
    {
      'smoke': smoke,
      'grid': grid,
      'cnn': cnn,
      'dirichlet': dirichlet,
      'pretrain': pretrain,
      'transfer': transfer,
      'attacked': attacked,
      'coverage': coverage,
    },
  )

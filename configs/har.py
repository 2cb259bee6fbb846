"""Human activity: 30 people are 30 tasks, Table IV and Fig. 4 of the paper.

Source: Kececi et al. (2022), https://arxiv.org/abs/2207.08147, section VI and
Table IV; splits as Dinh et al. (2021), FedU, https://arxiv.org/abs/2102.07148.

Command: python -m experiments.main --config=configs/har.py \
    --config.data.manual_dir=DIR
where DIR holds the zip of UCI data set 240; without it the data are downloaded.
The settings come from configs/sweeps/har.py. Expected: Separate 99.06,
Centralized joint 98.54, Multi-task FL 99.37; blocked 97.71, 97.40, 98.52.
Variants: blocked, cnn, raw, table, grid, smoke; they combine.
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

# Chosen on validation data by configs/sweeps/har.py, at the last round but for
# fine-tuning. Multi-task FL and FedProx: the best at a rate of 0.05. At 0.1 the
# best were 0.05 and 0.02 points above; other seeds of FedProx, and of a point
# next to multi-task FL's, diverged there.
_OVERRIDES = {
  'distributed_separate': {
    'client': {'learning_rate': 0.1, 'weight_decay': 0.0005},
  },
  'centralized_joint': {
    'client': {
      'learning_rate': 0.1,
      'schedule': 'cosine',
      'local_epochs': 1,
      'weight_decay': 0.0005,
    },
  },
  'multi_task_fl': {
    'client': {'learning_rate': 0.05},
    'algorithm': {'task_layers': 2},
    # Over-relaxed averages of the common layers.
    'server': {'common': {'learning_rate': 2.0}},
  },
  'fedavg': {
    'client': {'learning_rate': 0.05, 'local_epochs': 1},
    'server': {'common': {'learning_rate': 1.5}},
  },
  'fedavg_finetune': {
    'client': {'learning_rate': 0.05},
    'algorithm': {'finetune_epochs': 10},
    'run': {'rounds': 50},
  },
  'fedprox': {
    'client': {'learning_rate': 0.05, 'local_epochs': 1},
    'algorithm': {'mu': 0.001},
  },
}
_PUBLISHED = (
  ('Separate, Keçeci et al.', 'mean', '98.89'),
  ('Centralized joint, Keçeci et al.', 'mean', '98.98'),
  ('Multi-task FL, Keçeci et al.', 'mean', '99.42'),
  ('Local, convex, FedU', 'mean', '98.29 ± 0.01'),
  ('Global, convex, FedU', 'mean', '93.79 ± 0.27'),
  ('MOCHA, convex, FedU', 'mean', '98.79 ± 0.04'),
  ('FedU, convex', 'mean', '99.10 ± 0.18'),
  ('Local, neural, FedU', 'mean', '98.34 ± 0.03'),
  ('Global, neural, FedU', 'mean', '94.58 ± 0.16'),
  ('FedU, neural', 'mean', '99.21 ± 0.15'),
)


def people(config):
  """Thirty people are thirty clients with a task each; their network."""
  config.data.name = 'uci_har'
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.25
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.model.hidden = (128, 64, 32)
  config.algorithm.task_layers = 2
  config.client.batch_size = 16
  config.client.local_epochs = 2


def blocked(config):
  """Test windows come later in time: none overlaps a training one."""
  config.data.protocol = 'blocked'


def raw(config):
  """Features as they come, without standardization."""
  config.data.standardize = False


def table(config):
  """The three cases of the paper's table alone."""
  config.cases = ('distributed_separate', 'centralized_joint', 'multi_task_fl')


def cnn(config):
  """A convolutional network over time on the nine raw channels."""
  table(config)
  config.data.kind = 'signals'
  config.model.name = 'cnn'
  config.model.channels = (16, 32, 32)
  config.model.window = 5
  config.model.hidden = (64,)
  config.run.seeds = 2
  config.run.rounds = 40
  config.overrides = ml_collections.ConfigDict()  # Chosen for the features.
  config.client.learning_rate = 0.05
  config.client.schedule = 'cosine'


def smoke(config):
  """A few rounds of all kinds of training."""
  config.cases = (
    'distributed_separate',
    'centralized_joint',
    'multi_task_fl',
    'fedavg_finetune',
    'fedprox',
  )
  config.model.hidden = (16, 8)
  config.run.rounds = 4
  config.overrides.fedavg_finetune = ml_collections.ConfigDict()
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.execution.compile_effort = 'low'
  config.report.figure_formats = ()


def grid(config):
  """The search: validation data out of the training part, four fixed splits."""
  config.data.validation_fraction = 0.15
  config.overrides.fedavg_finetune = ml_collections.ConfigDict()
  config.run.first_seed = 1000
  config.run.seeds = 4
  config.run.evaluate_every = 50


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'har'
  config.cases = (
    'distributed_separate',
    'centralized_joint',
    'multi_task_fl',
    'fedavg',
    'fedavg_finetune',
    'fedprox',
  )
  people(config)
  config.client.learning_rate = 0.1
  config.run.rounds = 150
  config.run.seeds = 10
  config.run.evaluate_every = 10
  config.overrides = ml_collections.ConfigDict(_OVERRIDES)
  config.report.title = 'UCI HAR (recomputed features): test accuracy (%)'
  config.report.figure_formats = ('pdf', 'svg')
  config.report.view = 'client'
  config.report.curve_case = ''
  config.report.targets = (98.0, 99.0)
  config.report.labels = {'distributed_separate': 'Separate'}
  config.report.published = _PUBLISHED
  config.report.published_source = (
    'Keçeci et al. (2022), Table IV; Dinh et al. (2021), 75/25 splits of the '
    "public features. 'mean' is over examples."
  )
  return config_lib.apply_variants(
    config,
    variants,
    {
      'blocked': blocked,
      'cnn': cnn,
      'raw': raw,
      'table': table,
      'grid': grid,
      'smoke': smoke,
    },
  )

"""Predictive maintenance: five ways in which a machine fails, at three sites.

Source: Matzka (2020), AI4I 2020, https://archive.ics.uci.edu/dataset/601, CC BY
4.0: 10,000 products of three grades, synthetic by their author's design. A
grade is a site; a mode of failure is a task, which all sites have. Failures are
rare, so that the metric is the area under the precision-recall curve; who
answers at random has the share of failures. RNF is random: the negative
control. Splits are 70 to 30 inside each site, with as many failures of every
mode as that allows, other ones for each seed.

Command: python -m experiments.main --config=configs/maintenance.py \
    --config.data.manual_dir=DIR
Variants: partial, smoke; they combine. With partial, every site lacks the
labels of one mode.
"""

from fmtl_jax.experiments import config as config_lib


def partial(config):
  """Grade L does not log PWF, M not OSF, H not HDF."""
  config.data.kind = 'partial'
  config.report.title = 'AI4I 2020, partial labels: average precision'


def smoke(config):
  """A few rounds of some rows."""
  config.cases = ('distributed_separate', 'multi_task_fl')
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'maintenance'
  config.cases = (
    'majority',
    'distributed_separate',
    'centralized_joint',
    'separate_fl',
    'multi_task_fl',
    'mt_fedavg',
  )
  config.data.name = 'ai4i'
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.3
  config.data.validation_fraction = 0.0
  config.data.tasks_per_client = 5
  config.data.standardize = True
  config.data.metrics = ('average_precision',)
  config.cohort.slots = 'all'
  config.model.hidden = (32, 16)
  config.client.learning_rate = 0.1
  config.client.momentum = 0.9
  config.client.batch_size = 64
  config.client.local_epochs = 2
  config.run.rounds = 60
  config.run.seeds = 10
  config.run.evaluate_every = 10
  config.report.view = 'pooled'
  config.report.metric = 'average_precision'
  config.report.more_metrics = ('auc', 'balanced_accuracy')
  config.report.title = 'AI4I 2020: average precision of five modes of failure'
  return config_lib.apply_variants(
    config, variants, {'partial': partial, 'smoke': smoke}
  )

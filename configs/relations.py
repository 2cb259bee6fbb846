"""Schools, patients, sites, hospitals: real federations of related clients.

Sources: Dinh et al. (2021), FedU, https://arxiv.org/abs/2102.07148, for the
comparison of models that relate clients; the data are those of their packages
and publishers (`--list`). Linear models but for multi-task FL, which needs a
common layer. Splits are 75 to 25 inside of each client, other ones for each
seed; features and targets are standardized by training examples.

Command: python -m experiments.main --config=configs/relations.py:exam
Those of files need --config.data.manual_dir=DIR: parkinsons, landmine,
landmine_hinge, landmine_scaled, heart, disease, activity, sitting.
Variants: exam, math_achieve, bdf, star, readk, math3, parkinsons, landmine,
landmine_hinge, landmine_scaled, heart, disease, activity, sitting, grid, smoke;
they combine, as in :bdf,smoke.

Expected (RMSE in standard deviations, ten seeds) of separate training, one
model of all, FedU: exam 0.756, 0.791, 0.751; readk 0.866, 0.949, 0.861.
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

_CASES = (
  'distributed_separate',
  'centralized_joint',
  'fedavg',
  'multi_task_fl',
  'mr_mtl',
  'ditto',
  'fedu',
  'mocha',
  'fedamp',
  'fedem',
  'mat_fl',
  'fedhca2',
  'virtual',
)
# CoCoA that relates nobody, and with one model of all.
_HINGE = {'cocoa': 'Separate, hinge', 'cocoa_one_model': 'One model, hinge'}


def _chosen(config, *, separate, multi_task, mr_mtl, ditto, fedu, mocha=0.1):
  """Sets what pulls models together, or towards zero, by case.

  The best at the last round on validation data (configs/sweeps/relations.py).
  star has those of readk, and heart and MOCHA of Parkinsons have some that were
  not searched. Machines with hinge losses have theirs of sweeps/hinge.py.
  One model of all data needs nothing.
  """
  for field, value in {
    'distributed_separate.client.weight_decay': separate,
    'multi_task_fl.client.weight_decay': multi_task,
    'mr_mtl.algorithm.mr_mtl.lam': mr_mtl,
    'ditto.algorithm.ditto.lam': ditto,
    'fedu.algorithm.fedu.eta': fedu,
    'mocha.algorithm.mocha.lam': mocha,
  }.items():
    config_lib.put_field(config, f'overrides.{field}', value)


def _several_tasks(config, count):
  """Clients have all tasks, and rows are those with outputs for each.

  Others have one model of a client for all of its tasks, which would answer
  them with the same outputs.
  """
  config.data.tasks_per_client = count
  config.cohort.slots = 'all'
  config.cases = (
    'distributed_separate',
    'centralized_joint',
    'separate_fl',
    'multi_task_fl',
  )


def _set_ridges(config, **lams):
  """Sets lambda of support vector machines and of MOCHA, by case."""
  for name, lam in lams.items():
    algorithm = 'mocha' if name == 'mocha' else 'cocoa'
    field = f'overrides.{name}.algorithm.{algorithm}.lam'
    config_lib.put_field(config, field, lam)


def exam(config):
  """Schools in London."""
  config.data.name = 'exam'
  _chosen(
    config,
    separate=0.3,
    multi_task=0.1,
    mr_mtl=3.0,
    ditto=3.0,
    fedu=3.0,
    mocha=0.03,
  )
  config.report.title = 'Exam, 65 schools: test RMSE in standard deviations'


def math_achieve(config):
  """High schools in the United States."""
  config.data.name = 'math_achieve'
  _chosen(
    config,
    separate=1.0,
    multi_task=0.3,
    mr_mtl=3.0,
    ditto=3.0,
    fedu=6.0,
    mocha=0.1,
  )
  config.report.title = 'MathAchieve, 160 schools: test RMSE in deviations'


def bdf(config):
  """Schools in the Netherlands."""
  config.data.name = 'bdf'
  _chosen(
    config,
    separate=1.0,
    multi_task=0.3,
    mr_mtl=9.0,
    ditto=9.0,
    fedu=6.0,
    mocha=0.03,
  )
  config.report.title = 'bdf, 131 schools: test RMSE in standard deviations'


def star(config):
  """Schools in Tennessee: eight tests, of which most pupils have a part."""
  config.data.name = 'star'
  config.data.kind = ''
  _several_tasks(config, 8)
  _chosen(config, separate=1.0, multi_task=0.1, mr_mtl=1.0, ditto=1.0, fedu=3.0)
  # The common layer sees the sum of eight losses: smaller steps.
  config_lib.put_field(
    config, 'overrides.multi_task_fl.client.learning_rate', 0.005
  )
  config.report.title = 'STAR, 80 schools, 8 tests: RMSE in deviations'


def readk(config):
  """One of these tests: reading in kindergarten."""
  config.data.name = 'star'
  config.data.kind = 'readk'
  _chosen(config, separate=1.0, multi_task=0.1, mr_mtl=1.0, ditto=1.0, fedu=2.0)
  config.report.title = 'STAR, reading in kindergarten: RMSE in deviations'


def math3(config):
  """One of these tests: mathematics in the third grade."""
  config.data.name = 'star'
  config.data.kind = 'math3'
  _chosen(config, separate=1.0, multi_task=0.1, mr_mtl=1.0, ditto=1.0, fedu=3.0)
  config.report.title = 'STAR, mathematics in grade 3: RMSE in deviations'


def parkinsons(config):
  """Patients, whose levels differ: sharing does not help.

  Columns are nearly alike and one patient's are far away: small steps.
  """
  config.data.name = 'parkinsons'
  config.data.kind = 'motor'
  config.client.learning_rate = 0.004
  config.client.momentum = 0.9
  config.client.local_epochs = 20
  config.algorithm.ditto.personal_epochs = 20
  _chosen(
    config, separate=0.03, multi_task=0.01, mr_mtl=0.01, ditto=0.01, fedu=0.01
  )
  # It diverges at the rate of the others.
  config_lib.put_field(config, 'overrides.virtual.client.learning_rate', 0.001)
  config.report.title = 'Parkinsons, 42 patients: motor RMSE in deviations'


def landmine(config):
  """Sites, where a few in a hundred examples are mines."""
  _classes(config)
  config.data.name = 'landmine'
  config.report.metric = 'auc'
  config.report.more_metrics = ('balanced_accuracy', 'accuracy')
  _chosen(
    config,
    separate=0.0,
    multi_task=0.01,
    mr_mtl=0.01,
    ditto=0.01,
    fedu=0.03,
    mocha=0.3,
  )
  config.report.title = 'Land mines, 29 sites: test AUC'


def landmine_hinge(config):
  """As the authors of MOCHA: hinge losses, features as they are, no intercept.

  CoCoA that relates nobody is a support vector machine for each site, and with
  one model one for all of them.
  """
  landmine(config)
  config.cases = ('majority', *_HINGE, 'mocha')
  config.data.standardize = False
  config.model.name = 'linear'
  config.model.intercept = False
  config.report.metric = 'accuracy'
  config.report.more_metrics = ('auc', 'balanced_accuracy')
  # Ten times a hundred rounds, in which a site visits half of its examples.
  config.run.rounds, config.run.evaluate_every = 1000, 100
  config.client.local_epochs = 1
  for name, every in (('cocoa', 0), ('mocha', 100)):
    for field, value in {'share': 0.5, 'every': every}.items():
      config_lib.put_field(config, f'algorithm.{name}.{field}', value)
  # Chosen on validation data (configs/sweeps/hinge.py).
  config.overrides = ml_collections.ConfigDict()
  _set_ridges(config, cocoa=1e-7, cocoa_one_model=1e-5, mocha=1e-6)
  config.report.labels = dict(_HINGE)
  config.report.baseline = 'cocoa'
  config.report.title = 'Land mines as they are, 29 sites: test accuracy (%)'


def landmine_scaled(config):
  """The same with standardized features and an intercept."""
  landmine_hinge(config)
  config.data.standardize = True
  config.model.intercept = True
  _set_ridges(config, cocoa=1e-4, cocoa_one_model=1e-2, mocha=1e-4)
  config.report.title = 'Land mines, 29 sites, hinge losses: test accuracy (%)'


def heart(config):
  """Hospitals: who is ill, and how severely where that is known."""
  _classes(config)
  config.data.name = 'heart_disease'
  config.data.kind = ''
  _several_tasks(config, 2)
  config.cases = ('majority', *config.cases)
  config.report.metric = 'accuracy'
  config.report.more_metrics = ('balanced_accuracy', 'auc')
  _chosen(
    config, separate=0.03, multi_task=0.03, mr_mtl=0.1, ditto=0.1, fedu=0.1
  )
  config.report.title = 'Heart disease, 4 hospitals: test accuracy (%)'


def disease(config):
  """One of these tasks: who is ill, by all methods."""
  _classes(config)
  config.data.name = 'heart_disease'
  config.data.kind = 'disease'
  config.report.metric = 'accuracy'
  config.report.more_metrics = ('balanced_accuracy', 'auc')
  _chosen(config, separate=0.1, multi_task=0.1, mr_mtl=0.3, ditto=1.0, fedu=0.1)
  for field, value in {
    'centralized_joint.client.weight_decay': 0.1,
    'virtual.algorithm.virtual.prior_variance': 0.03,
  }.items():
    config_lib.put_field(config, f'overrides.{field}', value)
  config.report.title = 'Disease, 4 hospitals: test accuracy (%)'


def _classes(config):
  """Tasks with classes, and who always answers the most frequent one."""
  config.cases = ('majority', *_CASES)
  config.data.standardize_targets = 'none'
  config.data.metrics = ()
  config.client.learning_rate = 0.2


def activity(config):
  """Thirty people and their six activities, by linear models."""
  _classes(config)
  config.data.name = 'uci_har'
  config.execution.compile_effort = 'medium'  # Products of 561 columns.
  config.client.learning_rate = 0.05
  config.report.metric = 'accuracy'
  config.report.more_metrics = ()
  _chosen(
    config,
    separate=0.0,
    multi_task=0.0,
    mr_mtl=0.3,
    ditto=0.3,
    fedu=0.3,
    mocha=0.01,
  )
  config.report.title = 'UCI HAR (recomputed features): test accuracy (%)'


def sitting(config):
  """One of these activities against the rest: errors are few."""
  activity(config)
  config.data.kind = 'sitting'
  config.report.more_metrics = ('balanced_accuracy', 'auc')
  # Support vector machines, beside MOCHA that relates them.
  config.cases = (*config.cases, *_HINGE)
  config.report.labels.update(_HINGE)
  config.algorithm.cocoa.every = 0
  _set_ridges(config, cocoa=0.01, cocoa_one_model=0.1)
  config.report.title = 'UCI HAR, sitting or not: test accuracy (%)'


def grid(config):
  """The search: validation data of splits that no table is made from."""
  config.data.validation_fraction = 0.2
  config.run.first_seed = 1000
  config.run.seeds = 4


def smoke(config):
  """A few rounds of some rows."""
  config.cases = ('distributed_separate', 'fedu')
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.execution.compile_effort = 'low'
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'relations'
  config.cases = _CASES
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.25
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.data.standardize_targets = 'column'
  config.data.metrics = ('rmse', 'nrmse')
  config.model.hidden = ()
  config.client.learning_rate = 0.02
  config.client.batch_size = 0
  config.client.local_epochs = 5
  config.algorithm.ditto.personal_epochs = 5
  config.algorithm.mocha.every = 10
  config.algorithm.mocha.share = 1.0
  config.run.rounds = 60
  config.run.seeds = 10
  config.run.evaluate_every = 10
  config.execution.compile_effort = 'low'  # Rounds take milliseconds.
  config.overrides = ml_collections.ConfigDict(
    {
      # These need a layer in front of the last one.
      'multi_task_fl': {'model': {'hidden': (8,)}},
      # Best on validation data of exam; the other data have these, too.
      'fedem': {'client': {'weight_decay': 0.1}},
      'mat_fl': {'model': {'hidden': (8,)}, 'client': {'weight_decay': 0.1}},
      'fedhca2': {'model': {'hidden': (8,)}, 'client': {'weight_decay': 0.1}},
      'virtual': {'algorithm': {'virtual': {'prior_variance': 0.01}}},
      'centralized_joint': {'client': {'batch_size': 64}},
    }
  )
  config.report.view = 'client'
  config.report.metric = 'nrmse'
  config.report.more_metrics = ('rmse',)
  config.report.curve_case = ''
  config.report.figure_formats = ('pdf', 'svg')
  config.report.labels = {'distributed_separate': 'Separate'}
  exam(config)
  return config_lib.apply_variants(
    config,
    variants,
    {
      'exam': exam,
      'math_achieve': math_achieve,
      'bdf': bdf,
      'star': star,
      'readk': readk,
      'math3': math3,
      'parkinsons': parkinsons,
      'landmine': landmine,
      'landmine_hinge': landmine_hinge,
      'landmine_scaled': landmine_scaled,
      'heart': heart,
      'activity': activity,
      'sitting': sitting,
      'disease': disease,
      'grid': grid,
      'smoke': smoke,
    },
  )

"""The config schema: every field an experiment can set, with its default.

What changes results stands apart from what only changes speed (`execution`) or
what is shown (`report`, `checkpoint`). Field names are kept.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from . import catalogue
from . import own_code
from fmtl_jax import balancing
from fmtl_jax import compression

# Numbers of layers by which algorithms label them.
DEPTHS: Mapping[str, int] = {
  'task_layers': 1,
  'personal_layers': 0,
  'common_layers': 1,
  'shared_layers': 0,  # Of all clusters, at the input.
}
# Settings of algorithms that stand in `algorithm` itself, of all that have one
# with this name and default.
_SEVERAL_HAVE: Mapping[str, Any] = {
  'mu': 0.1,  # Proximal weight of fedprox.
  'finetune_epochs': 5,  # Of fedavg_finetune and others.
  # Of them, too; 0 is client.learning_rate, whatever its schedule.
  'finetune_learning_rate': 0.0,
}

# With fields of their own; other ones that are averaged have those of common.
LAYER_TYPES = ('common', 'task')
OF_CLIENTS = ('client', 'decoder')  # Every client's, and the server has them.


def default_config() -> ml_collections.ConfigDict:
  """Every field with its default; configs/ change what they need."""
  config = ml_collections.ConfigDict()
  config.name = ''
  # The rows of the results table, in order; see cases.py.
  config.cases = ()
  for add in (
    *(_add_data, _add_model, _add_precision, _add_training, _add_clients),
    *(_add_privacy, _add_studies),
    *(_add_execution, _add_report),
  ):
    add(config)
  return config


def _add_data(config: ml_collections.ConfigDict) -> None:
  """The data, and how they are partitioned and split."""
  config.data = ml_collections.ConfigDict()
  config.data.name = 'digits'  # Or package.module:function, see own_code.py,
  config.data.own = ml_collections.ConfigDict()  # with its settings.
  config.data.tasks = ''  # Or package.module:function of the source's tasks.
  # More of all tasks that they fit: names of fmtl_jax.metrics.CHOICES (f1,
  # macro_f1, average_precision, ece, brier, confusion, rmse, nrmse: in standard
  # deviations of the target), or package.module:NAME.
  config.data.metrics = ()
  config.data.manual_dir = ''  # Where a manual download lies.
  config.data.data_dir = ''  # Where prepared data go; '' is TFDS's default.
  config.data.kind = ''  # Which part of the source, where it has several.
  # Of pictures of digits: how each client shows them (upright, rotated,
  # upside_down, mirrored, inverted), with data.partition=key; () is upright.
  config.data.domains = ()
  config.data.image_size = 150  # Height and width of photographs, in pixels.
  config.data.image_crop = 1.0  # The central fraction that is kept of them.
  config.data.grey = False  # One channel instead of three.
  config.data.max_images = 0  # Photographs to use, evenly spaced; 0 is all.
  config.data.max_texts = 0  # Texts to use, evenly spaced; 0 is all.
  config.data.max_tokens = 32  # Of a text for an encoder; longer ones are cut.
  config.data.encoder_dir = ''  # With an encoder's vocab.txt; '': a package's.
  config.data.window = 80  # Tokens of a window of text.
  config.data.stride = 0  # From one window to the next; 0: the window's length.
  # The most frequent tokens (characters, or words with data.kind=word); others
  # are unknown.
  config.data.vocabulary = 2000
  config.data.least_characters = 1000  # Of users; those with less are left out.
  # What is drawn, of transactions and farms: owners (banks, sites), examples of
  # each, and the concentration of what a farm has more than others.
  config.data.synthetic = ml_collections.ConfigDict()
  config.data.synthetic.seed = 0
  config.data.synthetic.owners = 8
  config.data.synthetic.examples = 300
  config.data.synthetic.alpha = 1.0
  config.data.feature_dir = ''  # Where outputs of backbones are kept.
  config.data.clients = 50
  config.data.partition = 'iid'  # iid, key, dirichlet, shards, quantity.
  config.data.alpha = 0.5  # Concentration of dirichlet and quantity.
  config.data.shards_per_client = 2
  config.data.tasks_per_client = 1
  config.data.coverage = ()  # Share of the clients that hold each task.
  # How test examples are chosen: iid, random, blocked in time, or file: by the
  # files seed_0.csv, ... in the folder data.splits; a run writes such files.
  config.data.protocol = 'iid'
  config.data.splits = ''
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.1
  config.data.standardize = False  # Features, by training examples.
  # Targets of regressions: none; column: all tasks of a column of labels have
  # its mean and deviation; task: each has that of its own clients.
  config.data.standardize_targets = 'none'
  config.data.intercept = False  # A column of ones behind the features.
  # Parties with other columns of the same entities; see party_sources.py.
  config.data.vertical = ml_collections.ConfigDict()
  # Whose columns are whose: '' (there are no parties), blocks (those of the
  # source), even, importance or correlation.
  config.data.vertical.split = ''
  config.data.vertical.parties = 2  # With another split than blocks.
  config.data.vertical.alpha = 1.0  # Concentration of importance.
  config.data.vertical.beta = 0.5  # Of correlation: 0 least across parties.
  config.data.vertical.label_party = ''  # Its name; '' is the first.
  config.data.vertical.overlap = 1.0  # Share of the entities that each has.
  config.data.vertical.alignment = 'psi'  # Or plain: the same rows.
  config.data.vertical.seed = 0  # Of columns and of who has which entities.
  # So many natural owners of data without any, dealt at random, the same for
  # all seeds, with data.partition=key; 0 is none.
  config.data.drawn_owners = 0
  # (name, columns) pairs of sensors: a regular expression of names of features,
  # or a range as 0:40. () is one table; see fmtl_jax/data/modalities.py. Of
  # photographs: rgb:SIZE or grey:SIZE, and backbone, what that makes of them.
  config.data.modalities = ()
  # What kinds of clients have: names of modalities of each kind; () is all.
  config.data.client_modalities = ()
  config.data.modality_shares = ()  # Of clients, of each kind; () all alike.
  # The kind of each client, in the order of their keys; () draws them.
  config.data.modality_kinds = ()
  config.data.modality_seed = 0  # Of the draw.


def _add_model(config: ml_collections.ConfigDict) -> None:
  """The network, its layer types and the algorithm."""
  config.model = ml_collections.ConfigDict()
  config.model.name = 'mlp'  # Or package.module:function,
  config.model.own = ml_collections.ConfigDict()  # with its settings.
  config.model.hidden = (64, 32)
  config.model.intercept = True  # Of linear.
  config.model.channels = ()
  # Layers of each encoder of multi_modal; images have model.channels before.
  config.model.encoder = (64, 32)
  config.model.fusion = 'mean'  # Or attention: of what the encoders give.
  # Features of a token, of lstm and gru; of a row that a party sends.
  config.model.embedding = 8
  config.model.heads = 4  # Of attention in each block of transformer.
  config.model.head = ()  # Hidden layers of the party with labels, of vertical.
  config.model.parties = 'all'  # Or label: that with labels alone, of vertical.
  config.model.window = 3
  config.model.convolution = 'auto'  # Or patches, lax: the same, in other time.
  config.model.normalization = 'none'  # Or batch, of all but the output layer.
  config.model.backbone = ''  # A published network in front: see backbones.py.
  config.model.backbone_weights = ''  # A file; '' is that of a package.
  config.model.backbone_channel_order = ''  # Of the file: RGB, BGR, '' usual.
  # Low-rank changes of kernels that are not trained, of those whose paths match
  # one of the targets; () is none: see federation/adapters.py.
  config.model.adapters = ml_collections.ConfigDict()
  config.model.adapters.rank = 8
  config.model.adapters.alpha = 16.0  # By the rank, their factor.
  config.model.adapters.targets = ()
  # A folder with trained parameters: values of layers labelled pretrained.
  config.model.pretrained = ''
  # (regex, layer type) pairs; () lets the algorithm label layers by depth. A
  # table's are those of multi-task FL; other rows have them in their overrides.
  config.layer_types = ()

  config.algorithm = ml_collections.ConfigDict()
  config.algorithm.name = ''  # Set: the only row of the table.
  config.algorithm.pretrained_layers = 0
  config.algorithm.update(DEPTHS)
  config.algorithm.initialization = 'shared'  # Or per_owner.
  config.algorithm.update(_SEVERAL_HAVE)
  for name, spec in catalogue.known().items():
    for depth, default in spec.default_depths.items():
      if depth not in config.algorithm:
        config.algorithm[depth] = default
    own = {
      setting: default  # That of its paper.
      for setting, default in spec.defaults.items()
      if own_field(name, setting).count('.') == 2
    }
    if own:
      config.algorithm[name] = own


def _add_precision(config: ml_collections.ConfigDict) -> None:
  """In what products are computed, in training and evaluation alike."""
  config.precision = ml_collections.ConfigDict()
  # highest, tensorfloat32_x3 (three passes on a GPU, float32 elsewhere),
  # tensorfloat32, bfloat16: of products of float32, as far as a device has it
  # (on CPU all are the same); '' leaves it to JAX.
  config.precision.matmul = 'highest'
  # Or bfloat16: of the network; parameters and their means stay float32.
  config.precision.compute = 'float32'


def _add_training(config: ml_collections.ConfigDict) -> None:
  """Local training, cohorts and the server."""
  config.client = ml_collections.ConfigDict()
  config.client.optimizer = 'sgd'
  config.client.learning_rate = 0.1
  config.client.momentum = 0.0
  config.client.weight_decay = 0.0
  config.client.schedule = 'constant'  # constant, exponential, cosine.
  config.client.decay = 1.0  # Factor a round of the exponential schedule.
  config.client.batch_size = 16  # 0: all examples at once.
  config.client.local_epochs = 1
  config.client.keep_optimizer_state = False
  config.client.task_weights = ()  # Of a client's objective; () is ones.

  config.cohort = ml_collections.ConfigDict()
  # K, or one number a task; 0 is all.
  config.cohort.clients_per_task = config_dict.FieldReference(
    0, field_type=object
  )
  config.cohort.slots = 'drawn'  # drawn, all.

  # none or a method of fmtl_jax/balancing, with the defaults of its paper.
  config.balancing = ml_collections.ConfigDict()
  config.balancing.client = 'none'  # Over a client's tasks, in local steps.
  config.balancing.group = 'none'  # Over clients, instead of their mean.
  config.balancing.server = 'none'  # Over tasks, in common layers.
  config.balancing.weights = ()  # Of the tasks at the server; () is ones.
  config.balancing.update(balancing.SETTINGS)

  config.aggregation = ml_collections.ConfigDict()
  config.reducer = ml_collections.ConfigDict()
  # Of the robust aggregators that have them: see server/robust_aggregators.py.
  config.reducer.trim = 0.2  # Share that trimmed_mean drops at each end.
  config.reducer.attackers = 0.2  # Share that krum and multi_krum expect.
  config.reducer.kept = 0.0  # Share that multi_krum averages; 0: the others.
  config.reducer.iterations = 8  # Of geometric_median.
  config.reducer.norm = 1.0  # Bound of norm_clipping.
  # Whether common layers are reduced task by task, then averaged over tasks.
  config.reducer.within_tasks = False
  # none, eden, qsgd, top_k, sign, power_sgd: how clients send their updates,
  # see fmtl_jax/compression.
  config.compression = ml_collections.ConfigDict()
  config.compression.bits = 2.0  # Of a value: eden 1 to 4, qsgd 2 to 8.
  config.compression.share = 0.05  # Of the values, those that top_k sends.
  config.compression.rank = 2  # Of the factors of power_sgd, 1 to 4.
  # How the server sends what is new, with the same settings.
  config.compression.down = ml_collections.ConfigDict()
  # The server sees sums over clients alone, see fmtl_jax/rounds/secure_sums.py.
  config.secure = ml_collections.ConfigDict()
  config.secure.aggregation = False
  config.secure.clip = 10.0  # Largest norm of an update of a layer type,
  config.secure.report_clip = 100.0  # of what is reported beside it.
  config.secure.max_weight = 1000.0  # More examples count as that many.
  config.secure.bits = 32  # Of a number; 2 to 16 with uniform weights.
  config.secure.largest = 0.0  # Coordinate with fewer bits; 0: clip.
  config.secure.threshold = 2 / 3  # More than this share has to stay.
  config.server = ml_collections.ConfigDict()
  # Of layers of which the server mixes every client's copy, as in FedU; '' is
  config.compression.client = ''  # compression.common.
  for layer_type in LAYER_TYPES:
    config.compression.down[layer_type] = compression.NONE
    config.aggregation[layer_type] = 'examples'
    config.reducer[layer_type] = 'mean'
    config.compression[layer_type] = compression.NONE
    server = ml_collections.ConfigDict()
    server.optimizer = 'sgd'
    server.learning_rate = 1.0
    server.momentum = 0.0
    config.server[layer_type] = server


def _add_clients(config: ml_collections.ConfigDict) -> None:
  """Clients that attack, are slow or fail."""
  config.attack = ml_collections.ConfigDict()
  config.attack.name = 'none'  # Or sign_flip, noise, label_flip, nan.
  config.attack.share = 0.2  # Of every task's clients, rounded down,
  config.attack.by_task = True  # or of all clients alike.
  config.attack.scale = 10.0  # Of sign_flip and noise.

  # Dropouts, stragglers, partial work: see fmtl_jax/cohorts/participation.py.
  config.participation = ml_collections.ConfigDict()
  config.participation.dropout = 0.0  # Probability that a client drops out,
  config.participation.late = 0.0  # that its update comes too late to count,
  config.participation.partial = 0.0  # that it does a part of its local steps:
  config.participation.least_work = 0.1  # uniform from this share to all.
  config.participation.clock = False  # Simulated time, with what follows.
  config.participation.steps_per_second = 100.0  # Of the median client.
  config.participation.speed_spread = 0.0  # Deviation of the logarithm.
  config.participation.bytes_per_second = 1e6  # Of the median client.
  config.participation.bandwidth_spread = 0.0  # Deviation of the logarithm.
  config.participation.deadline = 0.0  # Seconds a round; 0 waits for everyone.
  config.participation.at_deadline = 'partial'  # Or late: nothing counts.

  # Differential privacy of what clients send, see fmtl_jax/rounds/
  # private_rounds.py; aggregation.common and .task are uniform then.
  config.faults = ml_collections.ConfigDict()
  # stop; skip_client leaves clients out of a round; clip bounds gradients.
  config.faults.nonfinite = 'stop'
  config.faults.clip_norm = 10.0  # Of gradients, with clip.
  # A point of a sweep ends where its loss is so many times its first one.
  config.faults.diverged_above = 100.0


def _add_privacy(config: ml_collections.ConfigDict) -> None:
  """Differential privacy."""
  config.privacy = ml_collections.ConfigDict()
  # What counts as one: none; client, by noise in what leaves all clients of a
  # round; example, by steps of DP-SGD on the examples of each client.
  config.privacy.unit = 'none'
  # C, of all that a client sends, or of the gradient of an example; 0: none.
  config.privacy.clipping_norm = 0.0
  config.privacy.noise_multiplier = 0.0  # z, of the noise in units of C, or
  config.privacy.epsilon = 0.0  # what z is calibrated for; 0 leaves z as it is.
  config.privacy.delta = 1e-5
  # Of the noise; -1 takes it from the operating system: for a release.
  config.privacy.seed = 0
  # Whether means and deviations of training data count as known to everybody.
  config.privacy.standardization_is_public = False
  # Of clients: poisson, or fixed: K clients of each task.
  config.privacy.sampling = 'poisson'
  config.privacy.cap = 0  # Clients of a task in a Poisson cohort; 0: by rule.
  config.privacy.noise = 'central'  # Or local: clients add it.
  # In how many rounds a noise counts, and groups of clients that take turns; 1:
  # all may take part in all rounds, whose noise is independent.
  config.privacy.bands = 1
  # C of what a client sends of each layer type; 0: clipping_norm of all of it.
  config.privacy.norms = ml_collections.ConfigDict(
    dict.fromkeys(LAYER_TYPES, 0.0)
  )
  config.privacy.adaptive = ml_collections.ConfigDict()
  config.privacy.adaptive.quantile = 0.0  # That the norm follows; 0: none.
  config.privacy.adaptive.learning_rate = 0.2
  config.privacy.adaptive.count_noise = 0.0  # 0: 1/20 of the expected cohort.


def _add_studies(config: ml_collections.ConfigDict) -> None:
  """How much is run, by which study, and what differs by case."""
  config.run = ml_collections.ConfigDict()
  config.run.rounds = 100
  config.run.seeds = 1
  config.run.first_seed = 0
  config.run.evaluate_every = 5

  # The search of experiments.compare, the same for every algorithm: rates of
  # clients, tried on validation data of seeds that the table does not use.
  config.compare = ml_collections.ConfigDict()
  config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
  config.compare.seeds = 4
  config.compare.first_seed = 1000
  config.compare.validation_fraction = 0.2  # Replaces that of data.

  # Held-out clients of experiments.unseen.
  config.unseen = ml_collections.ConfigDict()
  config.unseen.clients = 5  # How many; others for each seed.
  # Or the natural owners whose whole names match a pattern: the first one for
  # the first seed, and so on in turn. () draws clients.
  config.unseen.owners = ()
  # With how many of its own a held-out client adapts: the points of the curve.
  config.unseen.examples = (0, 1, 2, 5, 10, 20, 50)
  config.unseen.epochs = 5
  config.unseen.learning_rate = 0.02  # Where an algorithm has none of its own.
  config.unseen.start = 'mean'  # Of clients' copies; or initial, untrained.

  # What may differ by case: config.overrides.CASE.client.learning_rate.
  config.overrides = ml_collections.ConfigDict()


def _add_execution(config: ml_collections.ConfigDict) -> None:
  """What changes no result: how it is computed and kept."""
  config.execution = ml_collections.ConfigDict()
  config.execution.name = 'auto'  # Or scan, vmap, chunk[:K], low_rank[:K].
  # Megabytes for the clients that run at once, of chunk and low_rank; 0: half
  # of a GPU's or TPU's, 268 on CPU.
  config.execution.memory_mb = 0
  # Dense kernels are factored where their rows are below this share of them,
  # whatever that takes; 0: where it is faster.
  config.execution.low_rank_below = 0.0
  config.execution.clients_on = 'device'  # host: for large federations.
  # Devices that share the tasks, each with the layers of its tasks alone.
  config.execution.task_devices = 1
  # Of the compiler on CPU for rounds: high, medium (compiles in half the time,
  # runs a fifth longer, rounds differently) or low (for a few rounds).
  config.execution.compile_effort = 'high'

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every_rounds = 0  # 0: at the end of each case only.
  config.checkpoint.keep = 2  # The latest ones; the best is kept, too.


def _add_report(config: ml_collections.ConfigDict) -> None:
  """What is shown."""
  config.report = ml_collections.ConfigDict()
  config.report.title = ''
  config.report.metric = 'accuracy'
  config.report.view = 'pooled'
  # The case of curves.png, a line for each task; '' shows all cases.
  config.report.curve_case = 'multi_task_fl'
  config.report.baseline = 'distributed_separate'
  config.report.figure_formats = ()  # Of figures, beside PNG: pdf, svg.
  config.report.more_metrics = ()  # With a table each, below the first one.
  config.report.targets = ()  # Values to reach, in percent for accuracies.
  # One more target: what this case ends with, less the margin.
  config.report.target_case = ''
  config.report.target_margin = 0.5
  config.report.labels = (
    ml_collections.ConfigDict()
  )  # How a case is shown, by case.
  # Figures of others, shown below the table: (row label, column, text).
  config.report.published = ()
  config.report.published_source = ''


def own_field(algorithm: str, setting: str) -> str:
  """The field of a setting that is an algorithm's own, by dotted name."""
  if own_code.is_own(algorithm):
    return f'algorithm.{own_code.key(algorithm)}.{setting}'
  default = catalogue.find(algorithm).defaults[setting]
  if setting in _SEVERAL_HAVE and default == _SEVERAL_HAVE[setting]:
    return f'algorithm.{setting}'
  return f'algorithm.{algorithm}.{setting}'

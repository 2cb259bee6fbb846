"""Law: bad input is answered by one sentence with the cure, before anything.

Whatever a command is given, a data set, a config, a folder or a file of an
earlier run, it ends with exit code 2 and one line on stderr, no traceback, and
leaves its folder as it was. Random inputs may be good or bad: any sentence is
fine, a traceback is not. There are more of those with

  BAD_INPUTS=1000 python tests/experiments/console/bad_inputs_test.py
"""

import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import types
from typing import Any, NamedTuple
from unittest import mock
import zipfile

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
import ml_collections
from ml_collections import config_flags
import numpy as np

from experiments.building import checks
from experiments.building import datasets
from experiments.configuration import cases as cases_lib
from experiments.configuration import config as config_lib
from experiments.console import command_line
from experiments.folders import records
from experiments.folders import workdirs
from experiments.reporting import reports
from experiments.reporting import results
from experiments.running import exits
from experiments.studies import comparison_reports
from experiments.studies import comparisons
from experiments.studies import held_out
from experiments.studies import held_out_reports
from experiments.studies import models_of_runs
from experiments.studies import searches
from experiments.studies import sweep_reports
from experiments.studies import sweeps
from experiments.studies import train
from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import models
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import compression
from fmtl_jax.clients import attacks
from fmtl_jax.data import face_folder
from fmtl_jax.data import images
from fmtl_jax.data import uci_har
from fmtl_jax.server import robust_aggregators
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.data import uci_har_test
from tests.experiments import commands

setUpModule = commands.start
tearDownModule = commands.stop

SMALL = commands.SMALL
CNN = ('--config.model.name=cnn', '--config.model.channels=(2,)')
HAR = (
  f'--config={commands.HAR}:smoke',
  '--cases=multi_task_fl',
  '--config.data.manual_dir=data',
  '--config.data.data_dir=prepared',
)
FACES = (
  f'--config={commands.ROOT / "configs" / "faces.py"}:smoke',
  '--cases=multi_task_fl',
  '--config.data.manual_dir=data',
  '--config.data.data_dir=prepared',
  '--config.model.backbone=',
  '--config.data.image_size=8',
)
UTKFACE = (*FACES, '--config.data.name=utkface')
CELEB_A = (*FACES, '--config.data.name=celeb_a')
FACE_FOLDER = (*FACES, '--config.data.name=face_folder')
PRETRAINED = (
  '--config.algorithm.pretrained_layers=1',
  '--config.model.pretrained=saved',
)
EXPORT = ('--workdir=run', '--case=multi_task_fl', '--output=out')


def har_files(**changes):
  """The files of UCI HAR, some of them changed: None leaves one out."""
  files = {}
  for path, content in uci_har_test.FILES.items():
    stem = pathlib.PurePath(path).stem
    content = changes.get(stem, content)
    if content is not None:
      files[f'data/{uci_har_test.FOLDER}/{path}'] = content
  return files


def image(size=16) -> bytes:
  """A JPEG file."""
  import PIL.Image

  buffer = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
  PIL.Image.fromarray(pixels).save(buffer, 'jpeg')
  return buffer.getvalue()


def zipped(files) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for path, content in files.items():
      archive.writestr(path, content)
  return buffer.getvalue()


def config_file(lines, start='  config = config_lib.default_config()\n'):
  """The text of a config file with lines of its own."""
  return (
    'import ml_collections\n'
    'from experiments.configuration import config as config_lib\n'
    'def get_config():\n' + start + f"  config.cases = ('fedavg',)\n  {lines}\n"
    '  return config\n'
  )


def sweep_file(fields):
  return (
    'import ml_collections\ndef get_config():\n'
    f'  return ml_collections.ConfigDict({fields})\n'
  )


def flag(field, value):
  return f'--config.{field}={value}'


JPEG = image()
TABLE = 'file,Smiling\na.jpg,1\nb.jpg,0\n'
PHOTOGRAPHS = {'data/a.jpg': JPEG, 'data/b.jpg': JPEG}
FACE = 'data/26_0_3_20170104225502159.jpg.chip.jpg'
TEXT = uci_har_test.FILES['train/X_train.txt']
HAR_ZIP = zipped(uci_har_test.FILES)


class Mistake(NamedTuple):
  """A command that cannot be.

  Attributes:
    sentence: What is said, a regular expression.
    arguments: Of the command.
    files: Content by path, made in the folder before; None makes a folder.
    module: The command.
  """

  sentence: str
  arguments: tuple[str, ...]
  files: dict[str, Any] = {}
  module: str = 'main'


def of(field, value, sentence, *arguments):
  """A field of the config that cannot have a value."""
  return Mistake(sentence, (*SMALL, *arguments, flag(field, value)))


def har(sentence, **changes):
  return Mistake(sentence, HAR, har_files(**changes))


def har_zip(sentence, content):
  return Mistake(sentence, HAR, {'data/UCI HAR Dataset.zip': content})


def faces(sentence, table, images=None):
  files = dict(PHOTOGRAPHS if images is None else images)
  if table is not None:
    files['data/table.csv'] = table
  return Mistake(sentence, FACE_FOLDER, files)


def file_of_config(sentence, text):
  return Mistake(sentence, ('--config=bad.py',), {'bad.py': text})


def sweep(sentence, fields, *arguments):
  arguments = (*SMALL, '--sweep=grid.py', '--workdir=new', *arguments)
  return Mistake(sentence, arguments, {'grid.py': sweep_file(fields)}, 'sweep')


def compare(sentence, *arguments):
  arguments = (*commands.SMALL_COMPARISON, '--workdir=new', *arguments)
  return Mistake(sentence, arguments, {}, 'compare')


def unseen(sentence, *arguments):
  arguments = (*commands.SMALL_UNSEEN, '--workdir=new', *arguments)
  return Mistake(sentence, arguments, {}, 'unseen')


def folder(sentence, path, **files):
  arguments = (*SMALL, f'--workdir={path}')
  return Mistake(sentence, arguments, files.get('files', {}))


def export(sentence, files, *arguments):
  return Mistake(sentence, (*EXPORT, *arguments), files, 'export')


# A longer path than most file systems take.
LONG = 'x' * 300
FINITE = 'to be a finite number, got (nan|inf|-inf|1e.308)'
AGAIN = 'download (the data|it) again from https'
REMOVE = 'remove it, and the same command makes it again'

MISTAKES = {
  # Recordings.
  'har_no_folder': Mistake('data, which is none; make it and put http', HAR),
  'har_file_for_folder': Mistake('which is none; make it', HAR, {'data': 'x'}),
  'har_empty_folder': Mistake('got neither; put http', HAR, {'data': None}),
  'har_two_zips': Mistake(
    'Expected one UCI HAR zip .*; keep the one to read',
    HAR,
    {'data/har1.zip': b'', 'data/har2.zip': b''},
  ),
  'har_zip_garbage': har_zip(f'cannot be read .*{AGAIN}', b'garbage'),
  'har_zip_truncated': har_zip(f'cannot be read .*{AGAIN}', HAR_ZIP[:-200]),
  'har_zip_damaged': har_zip(
    f'Could not read .*{AGAIN}',
    HAR_ZIP.replace(TEXT[:40].encode(), b'x' * 40),
  ),
  'har_zip_of_other_files': har_zip(f'got none; {AGAIN}', zipped({'a': 'b'})),
  'har_missing_file': har(f'file train/y_train.txt .*{AGAIN}', y_train=None),
  'har_missing_signal': har(
    f'body_acc_x_test.txt in .*{AGAIN}', body_acc_x_test=None
  ),
  'har_truncated_row': har(
    f'Expected 561 numbers in line 3 .*{AGAIN}', X_train=TEXT[: len(TEXT) // 2]
  ),
  'har_fewer_rows': har(
    f'as many as in train/X_train.txt .5. .* got 4; {AGAIN}',
    y_train='5\n1\n2\n2\n',
  ),
  'har_other_columns': har(f'561 numbers .* got 2; {AGAIN}', X_train='1 2\n'),
  'har_empty_file': har(f'at least one, got 0; {AGAIN}', subject_test=''),
  'har_text': har('Expected numbers in line 1 of .* else', y_train='a\n' * 5),
  'har_bytes': har('Expected numbers in line 1 of', X_test='\0\1\n'),
  'har_nan': har('finite numbers in .* got nan in line 2', y_train='1\nnan\n'),
  'har_infinity': har(
    'finite numbers .* got inf in line 1, column 1',
    X_train=TEXT.replace(TEXT.split()[0], '1e999', 1),
  ),
  'har_label_out_of_range': har(
    'whole numbers from 1 to 6 .* got 7 in line 1', y_train='7\n1\n2\n2\n6\n'
  ),
  'har_label_between_classes': har(
    'whole numbers from 1 to 6 .* got 1.5', y_train='1.5\n1\n2\n2\n6\n'
  ),
  'har_subject_negative': har(
    'whole numbers from 1 .* got -3', subject_test='-3\n2\n2\n'
  ),
  'har_other_activities': har(
    f'in activity_labels.txt, .*{AGAIN}', activity_labels='1 RUNNING\n'
  ),
  'har_other_features': har(
    f'Expected 561 names in features.txt, got 1; {AGAIN}', features='1 a\n'
  ),
  'har_unknown_kind': Mistake(
    'kind to be one of features, signals',
    (*HAR, flag('data.kind', 'video')),
    har_files(),
  ),
  'har_prepared_below_a_file': Mistake(
    "data set 'uci_har' .*; see data.manual_dir and data.data_dir",
    (*HAR, flag('data.data_dir', 'text/prepared')),
    har_files() | {'text': 'x'},
  ),
  # Photographs.
  'utkface_none_given': Mistake(
    'manual_dir to be the folder with UTKFace.zip, got none; get it from',
    (*UTKFACE, flag('data.manual_dir', '')),
  ),
  'utkface_no_folder': Mistake('which is none; make it and put', UTKFACE),
  'utkface_file_for_folder': Mistake(
    'which is none; make it', UTKFACE, {'data': 'x'}
  ),
  'utkface_empty_folder': Mistake(
    'Expected images of UTKFace .* got none; get them', UTKFACE, {'data': None}
  ),
  'utkface_zip_garbage': Mistake(
    'Expected a zip of images, .* cannot be read .*; download it again',
    UTKFACE,
    {'data/UTKFace.zip': b'PK garbage'},
  ),
  'utkface_zip_truncated': Mistake(
    'Expected a zip of images, .* cannot be read',
    UTKFACE,
    {'data/UTKFace.zip': zipped({FACE: JPEG})[:-30]},
  ),
  'utkface_names_without_labels': Mistake(
    'got none .Left out: 1 images without labels in their names .*; add some',
    UTKFACE,
    {'data/portrait.jpg': JPEG},
  ),
  'utkface_race_out_of_range': Mistake(
    'got none .Left out: 1 images without labels',
    UTKFACE,
    {FACE.replace('26_0_3', '26_0_9'): JPEG},
  ),
  'utkface_truncated_image': Mistake(
    'got none .Left out: 1 unreadable images .*; add some',
    UTKFACE,
    {FACE: JPEG[: len(JPEG) // 2]},
  ),
  'face_folder_none_given': Mistake(
    'a folder with images and one CSV of .* got none; name it',
    (*FACE_FOLDER, flag('data.manual_dir', '')),
  ),
  'face_folder_no_folder': Mistake('none; give the path of one', FACE_FOLDER),
  'faces_no_table': faces('one CSV .* got none; keep the one', None),
  'faces_empty_table': faces('Expected a header in table.csv', ''),
  'faces_binary_table': faces('table.csv to be a CSV in UTF-8', b'\xff\xfe\0'),
  'faces_label_out_of_range': faces(
    "Expected 0 or 1 .* 'Smiling' in line 2 .* got '2'; leave it empty",
    TABLE.replace('a.jpg,1', 'a.jpg,2'),
  ),
  'faces_label_nan': faces("got 'nan'", TABLE.replace('a.jpg,1', 'a.jpg,nan')),
  'faces_missing_column': faces(
    'Expected 2 values in line 2 .* got 1; leave a value empty',
    TABLE.replace('a.jpg,1', 'a.jpg'),
  ),
  'faces_row_twice': faces(
    "got 'a.jpg' again in line 4 .*; write paths", TABLE + 'a.jpg,0\n'
  ),
  'faces_same_attribute': faces(
    'name each column once', TABLE.replace('Smiling', 'Smiling,Smiling')
  ),
  'faces_no_images': faces('2 rows without an image .*; add some', TABLE, {}),
  'faces_garbage_image': faces(
    '2 unreadable images .*; add some', TABLE, dict.fromkeys(PHOTOGRAPHS, b'x')
  ),
  'celeb_a_no_folder': Mistake('put them there, not unpacked, from', CELEB_A),
  'celeb_a_missing_file': Mistake(
    'got none of the name list_eval_partition.txt, .*; put them there',
    CELEB_A,
    {'data/img_align_celeba.zip': b''},
  ),
  'celeb_a_other_format': Mistake(
    'not at all, in data_dir prepared, got another format .*; give another',
    CELEB_A,
    {
      'prepared/celeb_a/2.1.0/dataset_info.json': json.dumps(
        {'name': 'celeb_a', 'version': '2.1.0', 'fileFormat': 'tfrecord'}
      ),
      'prepared/celeb_a/2.1.0/features.json': '{}',
    },
  ),
  'image_size': of('data.image_size', 0, r'data.image_size in \[1, 10000\]'),
  'image_crop': of('data.image_crop', 0, r'data.image_crop in \(0, 1\]'),
  'drawn_owners': of('data.drawn_owners', -1, 'data.drawn_owners >= 0, got'),
  'max_images': of('data.max_images', -1, 'data.max_images >= 0, got -1'),
  # Who has which data.
  'unknown_data': of('data.name', 'digit', "Did you mean 'digits'"),
  'unknown_kind': of(
    'data.kind', 'middle', "to be 'digit', 'low', 'high' or '' for five questi"
  ),
  'unknown_partition': of(
    'data.partition', 'dirichlt', "one of iid, .* Did you mean 'dirichlet'"
  ),
  'unknown_protocol': of('data.protocol', 'block', 'one of iid, random, block'),
  'no_natural_owners': of('data.partition', 'key', 'choose another data.parti'),
  'no_order_in_time': of('data.protocol', 'blocked', 'choose another data.pro'),
  'more_clients_than_examples': of(
    'data.clients', 1798, 'between 1 and 1797 .the number of examples'
  ),
  'too_few_examples_for_each': of(
    'data.clients',
    900,
    'use fewer data.clients',
    '--config.data.alpha=0.5',
    '--config.data.partition=dirichlet',
  ),
  'alpha_zero': of('data.alpha', 0, 'Expected data.alpha > 0, got 0'),
  'shards_zero': of('data.shards_per_client', 0, 'shards_per_client >= 1'),
  'too_many_shards': of(
    'data.shards_per_client',
    999,
    'use fewer shards or clients',
    '--config.data.partition=shards',
  ),
  'too_many_tasks': of('data.tasks_per_client', 6, 'between 1 and 5 .the num'),
  'coverage_of_fewer_tasks': of(
    'data.coverage', '(1,1)', 'a number for each of 5 tasks, got 2'
  ),
  'coverage_of_words': of('data.coverage', "('all',)", 'to be numbers, got'),
  'no_test_data': of(
    'data.test_fraction', 0, 'Expected data.test_fraction > 0'
  ),
  'no_test_example': of(
    'data.test_fraction', 0.001, 'use a larger one or fewer data.clients'
  ),
  'negative_fraction': of(
    'data.validation_fraction', -0.1, '>= 0 with a sum below 1'
  ),
  # The network.
  'unknown_model': of(
    'model.name',
    'cnm',
    "one of mlp, .*, multi_modal, lstm, .*, got 'cnm'. Did you mean 'cnn'",
  ),
  'hidden_zero': of('model.hidden', '(0,)', 'model.hidden to be whole numbers'),
  'hidden_text': of('model.hidden', "('a',)", 'whole numbers >= 1'),
  'hidden_true': of('model.hidden', '(True,)', 'whole numbers >= 1'),
  'too_many_convolutions': of(
    'model.channels', '(2,2,2)', 'at most 3 convolutions', *CNN
  ),
  'window_zero': of('model.window', 0, 'Expected model.window >= 1', *CNN),
  'window_too_wide': of('model.window', 9, 'model.window from 1 to 8', *CNN),
  'unknown_convolution': of('model.convolution', 'fft', 'auto, patches, lax'),
  'unknown_normalization': of('model.normalization', 'layer', 'none, batch'),
  'unknown_backbone': of(
    'model.backbone', 'dlib', 'dlib_resnet, minilm, vgg_face'
  ),
  'backbone_without_weights': of(
    'model.backbone', 'vgg_face', 'name a file: vgg_face.mat from'
  ),
  'too_large': of(
    'model.hidden', '(10000000,10000000)', 'MB left, .*; make room, name anoth'
  ),
  # The algorithm.
  'too_many_layers': of(
    'algorithm.task_layers', 9, 'choose fewer of the given kinds'
  ),
  'negative_layers': of('algorithm.task_layers', -1, 'task_layers >= 0'),
  'unknown_initialization': of(
    'algorithm.initialization', 'zeros', 'one of shared, per_owner'
  ),
  'own_setting': of('algorithm.apfl.alpha', 2, r'apfl.alpha in \[0, 1\]'),
  'unknown_order': of(
    'algorithm.per_fedavg.order',
    'third',
    'first, hessian_free, exact',
    '--cases=per_fedavg',
  ),
  'negative_proximal': of('algorithm.mu', -1, 'algorithm.mu >= 0, got -1'),
  'no_clusters': of('algorithm.ifca.clusters', 0, 'ifca.clusters >= 1'),
  'rule_without_type': of(
    'layer_types', "('.*',)", r'\(regular expression, layer type\) pairs'
  ),
  'rule_no_expression': of(
    'layer_types', "(('(', 'common'),)", 'Expected a regular expression'
  ),
  'rule_of_unknown_type': of(
    'layer_types', "(('.*', 'comon'),)", "Unknown layer type 'comon'"
  ),
  # Clients, cohorts, balancing, aggregation, servers, attacks.
  'rate_nan': of('client.learning_rate', 'nan', FINITE),
  'rate_infinite': of('server.task.learning_rate', 'inf', FINITE),
  'rate_too_large': of('client.learning_rate', '1e308', FINITE),
  'rate_negative': of('client.learning_rate', -0.1, 'rate >= 0, got -0.1'),
  'momentum_one': of('client.momentum', 1, r'client.momentum in \[0, 1\)'),
  'decay_negative': of('client.weight_decay', -1, 'weight_decay >= 0'),
  'unknown_optimizer': of('client.optimizer', 'sdg', 'one of sgd, adagrad'),
  'unknown_schedule': of('client.schedule', 'step', 'constant, exponential'),
  'batch_negative': of('client.batch_size', -1, 'client.batch_size >= 0'),
  'no_epochs': of('client.local_epochs', 0, 'client.local_epochs >= 1'),
  'weights_of_fewer_tasks': of(
    'client.task_weights', '(1,2)', 'a weight for each of the 5 tasks'
  ),
  'weights_of_none': of('client.task_weights', '(0,0)', 'above 0, got none'),
  'cohort_negative': of(
    'cohort.clients_per_task', '(-1,)', 'one number or 5 .*, got 1'
  ),
  'cohort_text': of('cohort.clients_per_task', 'all', 'to be a whole number'),
  'unknown_slots': of('cohort.slots', 'some', 'cohort.slots'),
  'unknown_balancing': of('balancing.server', 'pcgrat', 'none, fixed, uncert'),
  'balancing_needs_losses': of(
    'balancing.group', 'dwa', 'updates alone .fixed'
  ),
  'balancing_in_rounds': of(
    'balancing.client', 'fedgradnorm', 'use gradnorm there'
  ),
  'temperature_zero': of('balancing.temperature', 0, 'temperature > 0, got 0'),
  'unknown_weighting': of(
    'aggregation.task', 'mean', 'examples, uniform, task'
  ),
  'unknown_reducer': of(
    'reducer.common', 'krumm', 'mean, median, trimmed_mean'
  ),
  'trim_half': of('reducer.trim', 0.5, 'reducer.trim >= 0 and < 0.5, got 0.5'),
  'no_iterations': of('reducer.iterations', 0, 'reducer.iterations >= 1'),
  'norm_zero': of('reducer.norm', 0, 'reducer.norm > 0, got 0'),
  'unknown_server': of('server.common.optimizer', 'sdg', 'one of sgd, adagrad'),
  'two_servers': of(
    'server.common.optimizer',
    'adam',
    'server.common.optimizer to be SGD .*set those of algorithm.fedavgm',
    '--cases=fedavgm',
  ),
  'coarse_broadcast': of(
    'compression.down.common', 'qsgd', 'compression.down.common to lose less'
  ),
  'short_updates': of('secure.clip', 0.0, 'Expected secure.clip > 0'),
  'odd_bits': of('secure.bits', 20, 'secure.bits .* from 2 to 16, or 32'),
  'secure_median': of(
    'reducer.common',
    'median',
    'no reducer.common with secure.aggregation sums',
    '--config.secure.aggregation=true',
  ),
  'secure_codec': of(
    'compression.task',
    'eden',
    'no compression.task .* set secure.bits',
    '--config.secure.aggregation=true',
  ),
  'unknown_codec': of('compression.task', 'zip', 'none, eden, qsgd, top_k'),
  'too_many_bits': of('compression.bits', 9, r'bits in \[1, 8\], got 9'),
  'bits_of_eden': of(
    'compression.bits',
    5,
    'compression.bits of eden from 1 to 4, got 5',
    '--config.compression.common=eden',
  ),
  'no_share': of('compression.share', 0, r'share in \(0, 1\], got 0'),
  'no_rank': of('compression.rank', 0, r'rank in \[1, 4\], got 0'),
  'signs_and_medians': of(
    'compression.common',
    'sign',
    'compression.common to be unbiased with reducer.common, .* got sign',
    '--config.reducer.common=median',
  ),
  'codecs_and_sums': of(
    'compression.common',
    'eden',
    'no compression with an algorithm whose server adds up',
    '--cases=feddyn',
  ),
  'unknown_attack': of('attack.name', 'flip', 'none, sign_flip, noise'),
  'attack_of_all': of('attack.share', 1, r'attack.share in \[0, 1\), got 1'),
  'attack_of_nobody': of(
    'attack.share',
    0.1,
    'one client of some task at least',
    '--config.attack.name=nan',
  ),
  # Runs, execution, checkpoints, reports.
  'no_rounds': of('run.rounds', 0, 'Expected run.rounds >= 1, got 0'),
  'no_clock': of(
    *('participation.deadline', 3.0),
    r'participation.clock=True with participation.deadline=3, .*got False',
  ),
  'too_many_rounds': of('run.rounds', 2**31, 'run.rounds below 2147483648'),
  'too_many_seeds': of('run.seeds', 10**6, 'Expected run.seeds <= 10000'),
  'seed_negative': of('run.first_seed', -1, 'run.first_seed >= 0, got -1'),
  'seed_too_large': of('run.first_seed', 2**32, 'first_seed below 4294967296'),
  'last_seed_too_large': of(
    'run.seeds',
    2,
    'first_seed .*<= 4294967296',
    f'--config.run.first_seed={2**32 - 1}',
  ),
  'products_of_half': of(
    *(
      'precision.matmul',
      'half',
      'one of highest, tensorfloat32_x3, tensorfloat32, bfloat16',
    )
  ),
  'networks_of_half': of('precision.compute', 'half', 'of float32, bfloat16'),
  'chunk_of_none': of('execution.name', 'chunk:0', "for example 'chunk:8'"),
  'memory_negative': of('execution.memory_mb', -1, 'memory_mb >= 0, got -1'),
  'devices': of('execution.task_devices', 3, 'divide the . devices'),
  'unknown_place': of('execution.clients_on', 'disk', 'one of device, host'),
  'nothing_kept': of('checkpoint.keep', 0, 'checkpoint.keep >= 1, got 0'),
  'unknown_metric': of('report.metric', 'f1', 'accuracy, balanced_accuracy'),
  'metric_of_other_tasks': of('report.metric', 'mse', 'that the tasks have'),
  'metrics_that_are_numbers': of('data.metrics', '(1,)', 'data.metrics'),
  'more_metrics': of('report.more_metrics', "('mse',)", 'that the tasks have'),
  'unknown_baseline': of(
    'report.baseline', 'fedawg', "report.baseline .* Did you mean 'fedavg'"
  ),
  'targets_of_words': of(
    'report.targets', "('high',)", 'targets to be numbers'
  ),
  'published': of('report.published', "(('a', 'b'),)", 'text. triples'),
  # The command line.
  'not_a_flag': Mistake(
    "Expected flags, got 'digits'; write --name=value", (*SMALL, 'digits')
  ),
  'two_configs': Mistake(
    'Expected one --config, got 2', (*SMALL, f'--config={commands.HAR}')
  ),
  'no_case': Mistake("Unknown case ''; known are", (*SMALL, '--cases=,')),
  # Config files.
  'syntax': file_of_config(
    "'bad.py' cannot be used .SyntaxError: .*; correct it", 'def get_config(:'
  ),
  'raises': file_of_config(
    'RuntimeError: no luck.; correct it', 'raise RuntimeError("no\\nluck")'
  ),
  'no_function': file_of_config("no attribute 'get_config'.; correct", 'x = 1'),
  'not_a_config': file_of_config(
    'returns None, no ConfigDict', 'def get_config():\n  pass'
  ),
  'exits': file_of_config('SystemExit: 3', 'import sys\nsys.exit(3)'),
  'other_schema': file_of_config(
    "'aggregation.common'; start from experiments.config.default",
    config_file('pass', '  config = ml_collections.ConfigDict()\n'),
  ),
  'no_cases': file_of_config(
    'Expected cases to run, got none; set cases',
    config_file('config.cases = ()'),
  ),
  'new_field': file_of_config(
    "field 'client.learning_rat'. Did you mean 'client.learning_rate'",
    config_file('config.client.learning_rat = 0.1'),
  ),
  'nothing_in_a_field': file_of_config(
    'client.learning_rate to be like 0.1, got None',
    config_file('config.client.learning_rate = None'),
  ),
  'no_section': file_of_config(
    "has no field 'client.batch_size'", config_file('config.client = None')
  ),
  'array_in_a_field': file_of_config(
    "'hidden' to hold plain numbers and strings",
    config_file('import numpy as np; config.model.hidden = (np.int64(3),)'),
  ),
  'override_of_no_case': file_of_config(
    "Unknown case 'fedawg' in overrides; .* Did you mean 'fedavg'",
    config_file('config.overrides.fedawg = ml_collections.ConfigDict()'),
  ),
  'override_of_no_fields': file_of_config(
    'Expected overrides.fedavg to be a ConfigDict, got 3',
    config_file('config.overrides.fedavg = 3'),
  ),
  'label_of_no_case': file_of_config(
    "'fedawg' in report.labels; .* Did you mean 'fedavg'",
    config_file("config.report.labels.fedawg = 'FedAvg'"),
  ),
  # Folders.
  'folder_in_proc': folder('/proc/new .*; name another folder', '/proc/new'),
  'folder_below_a_device': folder('is a file; name another', '/dev/null/new'),
  'folder_below_a_file': folder(
    'text, which is a file; name another', 'text/new', files={'text': 'x'}
  ),
  'name_too_long': folder('name too long.; name another', f'new/{LONG}'),
  'folder_of_something_else': folder(
    'files of something else; name a new', 'other', files={'other/a.txt': 'x'}
  ),
  'damaged_config': folder(
    'config.json is damaged .*; use another --workdir',
    'other',
    files={'other/config.json': b'{"identity": {'},
  ),
  'other_run': folder(
    'holds another run: it differs in a .* name a new folder',
    'other',
    files={'other/config.json': '{"identity": {"a": 1}}'},
  ),
  # Saved models.
  'no_saved_model': Mistake(
    'No saved model in .*saved: model.json is missing', (*SMALL, *PRETRAINED)
  ),
  'saved_model_without_parameters': Mistake(
    'saved cannot be read .its parameters are missing .*; save it again',
    (*SMALL, *PRETRAINED),
    {'saved/model.json': '{}'},
  ),
  'saved_model_garbage': Mistake(
    'saved cannot be read .*; save it again',
    (*SMALL, *PRETRAINED),
    {'saved/model.json': b'\xff', 'saved/manifest.ocdbt': b'garbage'},
  ),
  # Sweeps.
  'sweep_of_nothing': sweep('Expected fields to sweep, got none', '{}'),
  'sweep_of_no_values': sweep(
    r'tuple of values .* got \(\); for one', {'client': {'momentum': ()}}
  ),
  'sweep_of_no_case': sweep(
    "Unknown case 'fedawg' in the sweep field .* Did you mean 'fedavg'",
    {'overrides': {'fedawg': {'client': {'momentum': (0.1,)}}}},
  ),
  'sweep_point_in_the_middle': sweep(
    r'algorithm.fedadam.beta1 in \[0, 1\), got 2.0',
    {'algorithm': {'fedadam': {'beta1': (0.5, 2.0, 0.9)}}},
    '--cases=fedadam',
  ),
  'sweep_of_nan': sweep(FINITE, "{'client': {'momentum': (float('nan'),)}}"),
  'sweep_of_data': sweep(
    'the same data.name for all cases and points, .*; run two experiments',
    {'data': {'name': ('digits', 'uci_har')}},
  ),
  'sweep_of_majority': sweep(
    'got the majority class alone',
    {'run': {'rounds': (1,)}},
    '--cases=majority',
  ),
  'sweep_without_validation': sweep(
    'validation_fraction > 0',
    {'run': {'rounds': (1,)}},
    flag('data.validation_fraction', 0),
  ),
  'sweep_metric': sweep(
    'that the tasks have',
    {'run': {'rounds': (1,)}},
    flag('report.metric', 'mse'),
  ),
  # Comparisons and held-out clients.
  'compare_seeds': compare('<= 10000', flag('compare.seeds', 2 * 10**9)),
  'compare_same_seeds': compare(
    'other seeds than the table', flag('compare.first_seed', 0)
  ),
  'compare_rates': compare(
    'learning_rates to be numbers above 0',
    flag('compare.learning_rates', "('a',)"),
  ),
  'compare_fraction': compare(
    'validation_fraction to be a finite',
    flag('compare.validation_fraction', 'nan'),
  ),
  'compare_folder': compare('; name another folder', '--workdir=/proc/new'),
  'unseen_epochs': unseen('unseen.epochs >= 1', flag('unseen.epochs', 0)),
  'unseen_rate': unseen(
    'learning_rate .*got nan', flag('unseen.learning_rate', 'nan')
  ),
  'unseen_start': unseen('one of mean, initial', flag('unseen.start', 'last')),
  'unseen_examples': unseen(
    'some to be tested on, .*; use fewer', flag('unseen.examples', '(999,)')
  ),
  # Models of runs.
  'export_no_run': export(
    'No run in run: config.json is missing', {}, '--task=odd'
  ),
  'export_damaged_run': export(
    'damaged .*; use another --workdir',
    {
      'run/config.json': '{"identity": {"command_line": 3}, "config": {"a": 1}}'
    },
    '--task=odd',
  ),
  'export_output_exists': export(
    'out exists; name a folder that does not', {'out': None}, '--task=odd'
  ),
  'export_output_in_proc': export(
    '--output=/proc/new .*; name another',
    {},
    '--task=odd',
    '--output=/proc/new',
  ),
}


class OneSentenceTest(commands.CommandTestCase):
  @parameterized.named_parameters(MISTAKES.items())
  def test_bad_input_is_one_sentence(self, mistake):
    write(self.cwd, mistake.files)
    self.check_mistake(
      mistake.sentence, *mistake.arguments, module=mistake.module
    )


def write(folder, files):
  """Makes files by path; None makes a folder."""
  for path, content in files.items():
    target = folder / path
    if content is None:
      target.mkdir(parents=True)
      continue
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(
      content if isinstance(content, bytes) else content.encode('latin-1')
    )


class FolderOfAnotherTest(commands.CommandTestCase):
  MODULE = 'main'

  def test_a_folder_in_use_is_refused(self):
    prepared(self.cwd / 'run', 'main', *SMALL)
    with workdirs.locked(self.cwd / 'run'):
      self.check_mistake(
        'Another process is running in --workdir=run; wait for it',
        *SMALL,
        '--workdir=run',
      )

  def test_a_damaged_record_is_reported_before_anything_runs(self):
    for module, part, arguments in (
      ('main', 'cases', SMALL),
      ('compare', 'cases', commands.SMALL_COMPARISON),
      ('compare', 'searches', commands.SMALL_COMPARISON),
      ('unseen', 'cases', commands.SMALL_UNSEEN),
    ):
      run = self.cwd / f'{module}_{part}'
      prepared(run, module, *arguments)
      name = 'isolated' if module == 'compare' else 'fedavg'
      write(run, {f'{part}/{name}.json': '{"case": "fedavg"'})
      self.check_mistake(
        f'{part}/{name}.json is damaged .*; {REMOVE}',
        *arguments,
        f'--workdir={run.name}',
        module=module,
      )

  def test_a_damaged_part_of_a_sweep_is_reported_before_anything_runs(self):
    grid = {'grid.py': sweep_file({'client': {'momentum': (0.1,)}})}
    write(self.cwd, grid)
    arguments = (*SMALL, f'--sweep={self.cwd / "grid.py"}')
    prepared(self.cwd / 'run', 'sweep', *arguments)
    write(self.cwd, {'run/parts/multi_task_fl_0.json': '[{}]'})
    self.check_mistake(
      f'multi_task_fl_0.json is damaged .*; {REMOVE}',
      *arguments,
      '--workdir=run',
      module='sweep',
    )

  def test_export_wants_what_a_run_has(self):
    prepared(self.cwd / 'run', 'main', *SMALL)
    for argument, sentence in (
      ('--case=multi_task_f', 'Expected --case to be one of centralized_sep'),
      ('--seed=5', r'Expected --seed to be one of \[0\], got 5'),
      ('--task=odd', "No checkpoint of 'multi_task_fl' in run; run that case"),
    ):
      arguments = (*EXPORT, '--task=odd', argument)
      self.check_mistake(sentence, *arguments, module='export')
    (self.cwd / 'run' / 'checkpoints' / 'multi_task_fl').mkdir(parents=True)
    for arguments, sentence in (
      (('--task=even',), "Expected a task out of odd, .*, got 'even'"),
      (('--client=9',), "id of a client, 0, 1, 2, 3, 4, got '9'"),
      (('--client=0', '--slot=1'), 'Expected a slot of client 0 that holds'),
    ):
      self.check_mistake(sentence, *EXPORT, *arguments, module='export')


class Accepted(BaseException):
  """The input is good: now a folder would be made, and programs compiled."""


def parsed(module, arguments):
  """The flags of a command, as it parses them, and what they override."""
  holder = flags.FlagValues()
  sections = ('config', 'sweep') if module == 'sweep' else ('config',)
  for section in sections:
    config_flags.DEFINE_config_file(section, flag_values=holder)
  flags.DEFINE_list('cases', [], '', flag_values=holder)
  argv = [f'{module}.py', *arguments]
  with (
    mock.patch.object(sys, 'argv', argv),
    mock.patch.object(flags, 'FLAGS', holder),
  ):
    command_line.parse_flags(argv)
    return holder, command_line.override_values()


COMMANDS = {
  'main': lambda given, *rest: train.train_and_evaluate(given.config, *rest),
  'sweep': lambda given, *rest: sweeps.run(given.config, given.sweep, *rest),
  'compare': lambda given, *rest: comparisons.run(given.config, *rest),
  'unseen': lambda given, *rest: held_out.run(given.config, *rest),
}


def begin(module, workdir, given, overrides, prepare=lambda *_: None):
  """What a command does before it compiles anything; ends with Accepted."""

  def stop(*arguments):
    prepare(*arguments)
    raise Accepted

  with mock.patch.object(workdirs, 'prepare', stop):
    COMMANDS[module](given, workdir, given.cases, overrides)


def prepared(workdir, module, *arguments):
  """Makes a folder as a command does, and stops there."""
  with contextlib.suppress(Accepted):
    begin(module, workdir, *parsed(module, arguments), workdirs.prepare)


MANY = int(os.environ.get('BAD_INPUTS', 0))


def examples(count):
  """So many examples, the same ones every time; or many that are not."""
  return hypothesis.settings(
    max_examples=MANY or count,
    derandomize=not MANY,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


DEFAULTS = config_lib.flatten(config_lib.default_config())
# Folders are those of a test; `name` is one, too.
FIELDS = sorted(
  field for field in DEFAULTS if field != 'name' and '_dir' not in field
)
NAMES = sorted(
  {
    *('', 'none', 'all', 'nan', 'low', 'high', 'host', 'cnn', 'batch', 'key'),
    *('chunk:2', 'low_rank', 'common', 'task', 'personal', 'pretrained', '.*'),
    *('dirichlet', 'shards', 'quantity', 'blocked', 'iid', 'per_owner', 'loss'),
    *cases_lib.CASES,
    *algorithms.ALGORITHMS,
    *attacks.NAMES,
    *compression.NAMES,
    *balancing.METHODS,
    *robust_aggregators.ROBUST_AGGREGATORS,
    *datasets.SOURCES,
    *checks.MODELS,
    *('adam', 'yogi', 'cosine', 'uniform', 'paper', 'drawn', 'auc', 'mse'),
  }
)
WHOLE = st.one_of(
  st.integers(-2, 12), st.sampled_from((2**31 - 1, 2**31, 2**64, -(10**30)))
)
NUMBER = st.one_of(
  st.sampled_from((0.0, 0.1, 0.5, 1.0)), st.floats(), st.floats(0, 1)
)
NAME = st.one_of(st.sampled_from(NAMES), st.text(max_size=6))
ATOM = st.one_of(WHOLE, NUMBER, NAME, st.booleans(), st.none())
SEVERAL = st.lists(ATOM, max_size=5).map(tuple)
VALUE = st.one_of(ATOM, SEVERAL, st.lists(SEVERAL, max_size=3).map(tuple))


def mostly(usual, other):
  """Three of four times the usual."""
  return st.integers(0, 3).flatmap(lambda n: usual if n else other)


def value_of(field):
  """Values of a field, mostly of its type."""
  default = DEFAULTS[field]
  of_type = {bool: st.booleans(), int: WHOLE, float: NUMBER, str: NAME}
  same = of_type.get(type(default))
  if same is None:
    item = st.sampled_from((WHOLE, NUMBER, NAME))
    same = item.flatmap(lambda i: st.lists(i, max_size=5)).map(tuple)
  return mostly(same, VALUE)


@st.composite
def settings(draw, most=3):
  """Some fields of the config and their values."""
  fields = draw(st.lists(st.sampled_from(FIELDS), max_size=most, unique=True))
  return {field: draw(value_of(field)) for field in fields}


def is_text(value):
  """Whether the command line can have it."""
  text = str(value)
  return '\0' not in text and text.isprintable()


GRIDS = st.sampled_from(FIELDS).flatmap(
  lambda field: st.tuples(
    st.just(field),
    mostly(st.lists(value_of(field), min_size=1, max_size=3), VALUE),
  )
)


class RandomTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enterContext(contextlib.chdir(folder))

  def one_sentence(self, function, *arguments):
    """What a function says of bad input, one line; '' if it is good."""
    try:
      with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
      ):
        function(*arguments)
    except Accepted:
      return ''
    except (ValueError, OSError) as error:
      self.assertNotEmpty(str(error))
      self.assertNotIn('\n', str(error))
      return str(error)
    return ''


class RandomConfigTest(RandomTestCase):
  BASE = {
    'main': SMALL,
    'compare': commands.SMALL_COMPARISON,
    'unseen': commands.SMALL_UNSEEN,
  }
  FOLDERS = (
    '--config.data.manual_dir=nowhere',
    '--config.data.data_dir=prepared',
    '--config.data.feature_dir=features',
  )

  @examples(60)
  @hypothesis.given(
    st.sampled_from(sorted(BASE)),
    mostly(st.sampled_from(sorted(cases_lib.CASES)), NAME.filter(is_text)),
    settings(),
  )
  def test_a_config_is_good_or_refused_with_one_sentence(
    self, module, case, values
  ):
    given = (flag(field, v) for field, v in values.items() if is_text(v))
    arguments = (*self.BASE[module], *self.FOLDERS, f'--cases={case}', *given)
    said = io.StringIO()
    try:
      with contextlib.redirect_stderr(said):
        found = parsed(module, arguments)
    except SystemExit as stop:
      self.assertEqual(stop.code, exits.USER_ERROR)
      self.assertRegex(said.getvalue(), r'^error: [^\n]+\n$')
      return
    self.one_sentence(begin, module, self.folder / 'new', *found)
    self.assertEmpty(list(self.folder.iterdir()))

  @examples(20)
  @hypothesis.given(st.lists(GRIDS, max_size=2, unique_by=lambda g: g[0]))
  def test_a_sweep_is_good_or_refused_with_one_sentence(self, swept):
    given, overrides = parsed('main', (*SMALL, *self.FOLDERS))
    grid = ml_collections.ConfigDict()
    for field, values in swept:
      config_lib.put_field(grid, field, values)
    self.one_sentence(
      begin,
      'sweep',
      self.folder / 'new',
      types.SimpleNamespace(config=given.config, sweep=grid, cases=given.cases),
      overrides,
    )
    self.assertEmpty(list(self.folder.iterdir()))


BYTES = st.one_of(
  st.binary(max_size=40),
  st.sampled_from((b'{}', b'[]', b'3', b'null', b'"a"', b'\xff\xfe', b'')),
)
JSON = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.text(max_size=5), inner, max_size=3),
  ),
  max_leaves=4,
)


@st.composite
def damaged(draw, content):
  """A file with a part of it replaced or cut off."""
  start = draw(st.integers(0, len(content)))
  end = draw(st.integers(start, len(content)))
  middle = draw(BYTES)
  return draw(
    st.sampled_from(
      (content[:start] + middle + content[end:], content[:start], middle)
    )
  )


@st.composite
def changed(draw, value):
  """JSON of a value of which some part is something else."""

  def change(value):
    if not isinstance(value, (dict, list)) or not value:
      return draw(JSON)
    names = sorted(value) if isinstance(value, dict) else range(len(value))
    name = draw(st.sampled_from(names))
    new = value.copy()
    how = draw(st.sampled_from(('deeper', 'deeper', 'replace', 'remove')))
    if how == 'remove':
      del new[name]
    else:
      new[name] = change(value[name]) if how == 'deeper' else draw(JSON)
    return new

  return json.dumps(change(value)).encode()


def damaged_json(value):
  return st.one_of(damaged(json.dumps(value).encode()), changed(value))


RECORD = {
  'case': 'fedavg',
  'label': 'FedAvg',
  'tasks': ['odd', 'prime'],
  'seeds': [0, 1],
  'protocol': 'iid',
  'overlapping_pairs': 0,
  'rounds': 2,
  'clients': ['0', '1'],
  'client_tasks': [[0], [1]],
  'curve': {
    'round': [0, 2],
    'values': {
      'test/pooled/accuracy': [[[50.0, 60.0, 55.0], [None, 70.0, 65.0]]] * 2,
      'test/client/accuracy': [[[50.0, 60.0, 55.0], [80.0, 70.0, 75.0]]] * 2,
    },
  },
  'train_loss': [[0.5, None], [0.4, 0.3]],
  'idle_rounds': [[], [1]],
  'client_values': {
    'test/accuracy': [[[50.0], [60.0]], [[None], [70.0]]],
    'cluster': [[0, 1], [1, 1]],
  },
  'settings': {
    'aggregation.common': 'examples',
    'aggregation.task': 'examples',
    'attack.name': 'nan',
    'attack.share': 0.2,
  },
  'cost': {
    **{
      name: {'common': 1, 'task': 2, 'personal': 0, 'pretrained': 0}
      for name in (
        *('parameters', 'bytes_up_per_round', 'bytes_down_per_round'),
        *('bytes_up_per_client', 'bytes_down_per_client'),
      )
    },
    'seconds_per_round': 0.1,
    'compile_seconds': 1.0,
    'client_steps_per_second': 10.0,
  },
}
ROWS = [
  {
    'case': 'fedavg',
    'settings': {'client.learning_rate': rate},
    'rounds': [0, 2],
    'curve': [50.0, final],
    'final': final,
    'std': None,
    'best': 50.0,
    'best_round': 0,
    'lower_is_better': False,
    'seconds': 1.0,
    'runs_in_program': 2,
  }
  for rate, final in ((0.1, 60.0), (0.2, None))
]
HELD_OUT = {
  'case': 'fedavg',
  'label': 'FedAvg',
  'seeds': [0, 1],
  'rounds': 2,
  'protocol': 'iid',
  'overlapping_pairs': 0,
  'examples': [0, 5],
  'clients': [[0, 1], [2, 3]],
  'test_examples': [[5, 6], [7, 8]],
  'adapted': 'nothing',
  'way': {'all_layers': False, 'rate': 0.1, 'pull': 0.0},
  'values': {
    'accuracy': [[[[50.0], [None]], [[60.0], [70.0]]]] * 2,
    'loss': [[[[0.5], [None]], [[0.6], [0.7]]]] * 2,
  },
  'training_clients': {'accuracy': [50.0, 60.0], 'loss': [0.5, 0.6]},
  'settings': {
    'aggregation.common': 'examples',
    'aggregation.task': 'examples',
    'unseen.start': 'mean',
    'unseen.epochs': 5,
  },
}


class RandomFileTest(RandomTestCase):
  """What is in a file is used, or reported in one sentence."""

  def write(self, path, content):
    write(self.folder, {path: content})

  def files_of(self, folder):
    """All files below a folder, with what is in them."""
    return {
      path: path.read_bytes()
      for path in sorted((self.folder / folder).rglob('*'))
      if path.is_file()
    }

  @examples(30)
  @hypothesis.given(st.data())
  def test_recordings(self, data):
    write(self.folder, har_files())
    read = [path for path in sorted(har_files()) if 'Inertial' not in path]
    path = data.draw(st.sampled_from(read))
    content = har_files()[path].encode('latin-1')
    self.write(path, data.draw(damaged(content)))
    self.one_sentence(uci_har.load, 'data', 'prepared')

  @examples(30)
  @hypothesis.given(st.data())
  def test_a_zip_of_recordings(self, data):
    self.write('data/har.zip', data.draw(damaged(HAR_ZIP)))
    self.one_sentence(uci_har.load, 'data', 'prepared')

  @examples(30)
  @hypothesis.given(damaged(JPEG), damaged(TABLE.encode()), st.booleans())
  def test_photographs(self, photograph, table, with_table):
    files = {'data/a.jpg': photograph, 'data/b.jpg': JPEG}
    write(self.folder, files | {'data/table.csv': TABLE})
    if with_table:
      self.write('data/table.csv', table)

    def load():
      found = face_folder.load('data', 'prepared')
      self.assertLen(images.Images(found.encoded, (8, 8))[:], len(found.names))

    self.one_sentence(load)

  @examples(30)
  @hypothesis.given(st.data())
  def test_a_saved_model(self, data):
    network = models.mlp((3,), (2,), 1)
    if not (self.folder / 'saved').exists():
      predictors.Predictor(
        apply_fn=network.apply,
        params=network.init(jax.random.key(0)),
        task=tasks_lib.Task(name='odd'),
      ).save('saved')
    good = self.files_of('saved')
    path = data.draw(st.sampled_from(sorted(good)))
    content = damaged(good[path])
    if path.suffix == '.json':
      content = st.one_of(content, changed(json.loads(good[path])))
    path.write_bytes(data.draw(content))
    self.one_sentence(predictors.Predictor.load, 'saved', network.apply)
    path.write_bytes(good[path])

  @examples(30)
  @hypothesis.given(st.data())
  def test_a_checkpoint(self, data):
    state = {'params': np.arange(3.0), 'round': np.int32(2)}
    if not (self.folder / 'states').exists():
      saved = checkpoints.Checkpoints('states', about={'run.rounds': 3})
      saved.save(2, state, {'history': {}})
      saved.close()
    good = self.files_of('states')
    path = data.draw(st.sampled_from(sorted(good)))
    content = damaged(good[path])
    if path.name == 'metadata':
      content = st.one_of(content, changed(json.loads(good[path])))
    path.write_bytes(data.draw(content))

    def restore():
      about = {'run.rounds': 3}
      saved = checkpoints.Checkpoints('states', about=about, read_only=True)
      with contextlib.closing(saved):
        saved.restore(state)

    self.one_sentence(restore)
    path.write_bytes(good[path])

  @examples(30)
  @hypothesis.given(st.data())
  def test_the_config_of_a_run(self, data):
    identity = {'client.learning_rate': 0.1, 'command_line': ['run.rounds']}
    config = config_lib.flatten(config_lib.default_config())
    value = {'identity': identity, 'config': config}
    self.write('run/config.json', data.draw(damaged_json(value)))
    self.one_sentence(workdirs.check, self.folder / 'run', identity)
    self.one_sentence(models_of_runs.read_config, self.folder / 'run')

  @examples(100)
  @hypothesis.given(damaged_json(RECORD))
  def test_the_record_of_a_case(self, content):
    config = config_lib.default_config()
    self.write('cases/a.json', content)
    self.write('cases/b.json', json.dumps(RECORD | {'case': 'isolated'}))

    def report():
      found = reports.load_records(self.folder, ('fedavg',))
      results.build(found, {})
      results.write_metrics_csv('metrics.csv', found)
      reports.build_tables(found, config)
      comparison_reports.summarize(found, {'fedavg': ROWS}, config)

    self.one_sentence(report)

  @examples(100)
  @hypothesis.given(damaged_json(HELD_OUT))
  def test_the_record_of_held_out_clients(self, content):
    self.write('cases/a.json', content)

    def report():
      found = reports.load_records(self.folder, check=records.check_held_out)
      for metric in found[0]['values']:
        held_out_reports.summarize(found, metric)

    self.one_sentence(report)

  @examples(100)
  @hypothesis.given(damaged_json(ROWS))
  def test_a_part_of_a_sweep(self, content):
    self.write('part.json', content)

    def report():
      rows = records.read_rows(self.folder / 'part.json')
      sweep_reports.best_of(rows)
      searches.best_of(rows)

    self.one_sentence(report)

  @examples(100)
  @hypothesis.given(damaged_json({'identity': {'a': 1}, 'rows': ROWS}))
  def test_a_search(self, content):
    self.write('search.json', content)
    rate = 'client.learning_rate'

    def report():
      read = lambda value: records.check_search(value, rate)
      found = records.read(self.folder / 'search.json', read)
      config = config_lib.default_config()
      if found['rows'] is not None:
        comparison_reports.summarize([], {'fedavg': found['rows']}, config)

    self.one_sentence(report)


if __name__ == '__main__':
  absltest.main()

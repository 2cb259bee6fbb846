"""Compares a face network with descriptors that dlib computed.

python -m experiments.benchmarks.descriptors --config=configs/faces.py \
    --config.data.manual_dir=DIR --descriptors=DIR/dlib_descriptors.npz \
    --output=descriptors.json

The file has `name [N]` and `descriptor [N, 128]`. The similarity is below 1
where the photographs were aligned in another way. Whether the features say
anything is asked with a logistic regression for each task, on a fifth of the
photographs that it has not seen.
"""

import json
import pathlib
import sys

from absl import flags
import numpy as np

from ..console import command_line
from ..console import config_files
from ..console import programs

_CONFIG = config_files.define_config()
_DESCRIPTORS = command_line.define_path(
  'descriptors', 'A .npz to compare with.'
)
_FLOOR = flags.DEFINE_float(
  'floor', 0.99, 'The least median similarity that counts as the same network.'
)
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')
flags.mark_flag_as_required('config')


def similarities(features: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Cosines `[N]` between the rows of two arrays `[N, D]`."""
  lengths = [np.linalg.norm(x, axis=1) for x in (features, others)]
  return (features * others).sum(1) / np.prod(lengths, axis=0)


def probe(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
  """The accuracy (%) of a logistic regression on a fifth of the examples.

  Args:
    features: `[N, D]`.
    labels: `[N]`, NaN where missing.
    seed: Of the split.
  """
  from sklearn import linear_model
  from sklearn import model_selection
  from sklearn import pipeline
  from sklearn import preprocessing

  known = ~np.isnan(labels)
  train, test, train_labels, test_labels = model_selection.train_test_split(
    features[known],
    labels[known],
    test_size=0.2,
    random_state=seed,
    stratify=labels[known],
  )
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(max_iter=1000),
  )
  return 100 * model.fit(train, train_labels).score(test, test_labels)


def main() -> int:
  """Prints the comparison, and writes it where `--output` says."""
  from ..building import backbones
  from fmtl_jax.data import utkface

  config = _CONFIG.value
  source = backbones.load_source(config)
  figures: dict[str, float] = {'photographs': len(source.features)}
  if _DESCRIPTORS.value:
    path = pathlib.Path(_DESCRIPTORS.value)
    try:
      with np.load(path) as file:
        known = dict(
          zip(
            file['name'].tolist(),
            file['descriptor'].astype(np.float32),
            strict=True,
          )
        )
    except Exception as error:  # Whatever a reader makes of damaged files.
      raise ValueError(
        f'Expected a .npz with `name` and `descriptor` in --descriptors, got '
        f'{path} ({error!r}).'
      ) from error
    if config.data.name != 'utkface' or config.data.max_images:
      raise ValueError('Descriptors are compared for all of UTKFace only.')
    names = utkface.load(
      config.data.manual_dir, config.data.data_dir or None
    ).names
    rows = [i for i, name in enumerate(names) if name in known]
    if not rows:
      raise ValueError(
        f'Expected descriptors of these photographs in {path}, got others, '
        f'such as {next(iter(known), "none")!r}.'
      )
    cosines = similarities(
      source.features[rows], np.stack([known[names[i]] for i in rows])
    )
    figures |= {
      'compared': len(rows),
      'median_cosine': float(np.median(cosines)),
      'lowest_percent_cosine': float(np.quantile(cosines, 0.01)),
    }
  for task in source.tasks:
    labels = source.labels[:, task.column]
    figures[f'logistic_regression_{task.name}'] = probe(source.features, labels)
  for name, value in figures.items():
    print(f'{name}: {value:.6g}')
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(
      json.dumps(figures, indent=2) + '\n', encoding='utf-8'
    )
  if not figures.get('median_cosine', 1.0) >= _FLOOR.value:  # NaN as well.
    print(
      f'error: expected a median cosine of at least {_FLOOR.value}, got '
      f'{figures["median_cosine"]:.4f}.',
      file=sys.stderr,
    )
    return 1
  return 0


if __name__ == '__main__':
  programs.run(main)

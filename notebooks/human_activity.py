# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Human activity: who is worse off in a federation?
#
# Thirty people carry a phone that tells walking from sitting. Each of them is a
# client and a task. One model for all (FedAvg) is good on average, and bad for
# those who move unlike the others: *negative transfer*, the share of the people
# who would be better off alone.
#
# It takes about three minutes on two CPU cores with the real data. It is
# written for CPU, GPU and TPU runtimes; it has never been run on a TPU.

# %%
import importlib.util
from importlib import metadata
import os
import pathlib
import subprocess
import sys

# A wheel that you uploaded, a folder with the sources, or git+https://...
PACKAGE = os.environ.get('FMTL_JAX_PACKAGE', '')
SMOKE = os.environ.get('FMTL_JAX_SMOKE') == '1'  # Only whether it runs.

if importlib.util.find_spec('fmtl_jax') is None:
  if not PACKAGE:
    raise SystemExit('Set PACKAGE: fmtl_jax is not installed here.')
  # What the runtime has for its devices stays as it is.
  keep = ('jax', 'libtpu', 'flax', 'optax', 'orbax', 'numpy')
  versions = sorted(
    f'{found.name}=={found.version}'
    for found in metadata.distributions()
    if found.name.lower().startswith(keep)
  )
  pathlib.Path('keep.txt').write_text('\n'.join(versions), encoding='utf-8')
  pip = [sys.executable, '-m', 'pip', 'install', '-q', '-c', 'keep.txt']
  subprocess.run([*pip, PACKAGE], check=True)

import jax

import fmtl_jax

fmtl_jax.prepare_jax()  # All cores of a CPU; compiled programs are kept.
print(jax.__version__, jax.devices())
# %% [markdown]
# ## The data
#
# `DATA` is the folder with `UCI HAR Dataset.zip`, the UCI data set 240. Without
# it a **synthetic stand-in** shows the same steps: its numbers say nothing
# about people.

# %%
DATA = os.environ.get('FMTL_JAX_HAR', '')  # The folder.

from fmtl_jax import tasks
from fmtl_jax.configs import har
from fmtl_jax.experiments import datasets
from fmtl_jax.experiments import named
from fmtl_jax.experiments import run
import numpy as np


def synthetic_people(data):
  """Twelve made-up people, of whom a third swaps two of four activities."""
  rng = np.random.default_rng(0)
  people = np.repeat(np.arange(12), 60)
  activity = rng.integers(4, size=len(people))
  centres = 2 * rng.normal(size=(4, 16))
  swapped = np.where(people % 3 == 0, activity ^ 1, activity)
  x = centres[swapped] + rng.normal(size=(12, 16))[people]
  x += 1.5 * rng.normal(size=x.shape)
  names = [f'synthetic person {person}' for person in range(12)]
  return datasets.Source(
    features=x.astype(np.float32),
    labels=activity[:, None].astype(np.float32),
    tasks=tuple(tasks.multiclass(name, 4) for name in names),
    strata=activity,
    keys=people,
    shared_labels=False,
    task_keys={name: person for person, name in enumerate(names)},
  )


config = har.get_config('smoke' if SMOKE else '')
if DATA:
  config.data.manual_dir = DATA
else:
  print(
    'DATA is not set: this is a SYNTHETIC stand-in, not human activity. The '
    'real data are at https://archive.ics.uci.edu/dataset/240.'
  )
  config.data.name = named(synthetic_people)
  config.report.title = 'SYNTHETIC stand-in: test accuracy (%)'
  config.report.published = ()

# %% [markdown]
# ## Alone, together, and something between
#
# Alone; FedAvg; FedAvg, then a few epochs of one's own before predicting; and
# multi-task FL with two layers for each person behind two shared ones.

# %%
config.run.seeds = 2
cases = ('distributed_separate', 'fedavg', 'fedavg_finetune', 'multi_task_fl')
results = run(config, cases)
results

# %% [markdown]
# ## Negative transfer

# %%
import pandas as pd

transfer = results.negative_transfer('distributed_separate')
pd.DataFrame(transfer, index=results.seeds).rename_axis('seed').round(1)

# %%
results.figures['clients']  # Each person against training alone.

# %% [markdown]
# The people who lose most with FedAvg, and what the others give them:

# %%
differences = pd.DataFrame(
  {
    case: results.client_differences(case, 'distributed_separate').mean(0)
    for case in cases[1:]
  },
  index=pd.Index(results.clients, name='person'),
)
differences.sort_values('fedavg').head().round(2)

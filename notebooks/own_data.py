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
# # Your own data: from a CSV with a user column to a table
#
# A CSV has a row for each example, a column that says whose it is, and columns
# of labels. Every user becomes a client, every label a task. Then the table
# compares training alone, one model for all (FedAvg), and multi-task FL.
#
# It takes about a minute on two CPU cores. It is written for CPU, GPU and TPU
# runtimes, and has never been run on a TPU.

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
# ## The file
#
# Yours lies somewhere already. This one is made up: 60 customers of a shop, six
# numbers for each visit, and two answers: did the customer buy, and was it sent
# back? What makes somebody buy differs from customer to customer.

# %%
import numpy as np
import pandas as pd

CSV = 'visits.csv'
rng = np.random.default_rng(0)
visits = []
for customer in range(60):
  x = rng.normal(size=(40, 6))
  taste = rng.normal(size=2)
  buys = x[:, 0] + x[:, 1] * x[:, 2] + x[:, :2] @ taste > 0
  returns = x[:, 1] * x[:, 2] - x[:, 3] + 0.5 * rng.normal(size=40) > 0
  table = pd.DataFrame(x.round(3), columns=[f'x{i}' for i in range(6)])
  visits.append(table.assign(customer=customer, buys=buys, returns=returns))
pd.concat(visits).to_csv(CSV, index=False)
pd.read_csv(CSV).head()

# %% [markdown]
# ## A source
#
# A function of the config's `data` that returns a `Source`: features, labels in
# a column for each task (NaN where one is missing), and whose each example is.
# `strata` is what training and test examples have in the same proportions.

# %%
from fmtl_jax import tasks
from fmtl_jax.experiments import config as config_lib
from fmtl_jax.experiments import datasets
from fmtl_jax.experiments import named
from fmtl_jax.experiments import run

USER, TASKS = 'customer', ('buys', 'returns')


def shop(data):
  table = pd.read_csv(data.manual_dir)
  labels = table[list(TASKS)].to_numpy(np.float32)
  return datasets.Source(
    features=table.drop(columns=[USER, *TASKS]).to_numpy(np.float32),
    labels=labels,
    tasks=tuple(
      tasks.binary(name, column=column) for column, name in enumerate(TASKS)
    ),
    strata=labels[:, 0].astype(np.int32),
    keys=table[USER].to_numpy(),
  )


# %% [markdown]
# ## A config, and the table
#
# Users are clients (`partition = 'key'`), each with both tasks. A fifth of the
# rows of every user are for test. The last layer is the task's own.

# %%
config = config_lib.default_config()
config.name = 'shop'
config.cases = ('majority', 'distributed_separate', 'fedavg', 'multi_task_fl')
config.data.name = named(shop)
config.data.manual_dir = CSV
config.data.partition = 'key'
config.data.tasks_per_client = 2
config.data.standardize = True
config.model.hidden = (32, 16)
config.cohort.slots = 'all'  # A client trains both of its tasks.
config.cohort.clients_per_task = 20
config.client.learning_rate = 0.1
config.client.local_epochs = 2
config.run.rounds = 4 if SMOKE else 60
config.run.evaluate_every = 2 if SMOKE else 10
config.run.seeds = 2 if SMOKE else 3
config.execution.compile_effort = 'low' if SMOKE else 'high'
config.report.view = 'client'  # Each customer on its own rows.
config.report.title = 'Shop: test accuracy (%)'
config.report.baseline = 'distributed_separate'
results = run(config)
results

# %%
results.figures['clients']  # Each customer against training alone.

# %% [markdown]
# ## A model, and what it says of new rows
#
# Features go in as they are in the file: standardization is part of the model.

# %%
model = results.predictor('multi_task_fl', client=7, slot=0)
new = pd.read_csv(CSV).query('customer == 7').head(5)
probabilities = model.probabilities(
  new[[f'x{i}' for i in range(6)]].to_numpy(np.float32)
)
new.assign(probability=np.asarray(probabilities)[:, 1].round(2))

# %% [markdown]
# `model.save('FOLDER')` keeps it. The folder of the run, `results.workdir`, has
# the tables as Markdown and LaTeX, the figures, every value in `metrics.csv`,
# TensorBoard events and checkpoints: `run(config, workdir=results.workdir)`
# goes on where it stopped. With the function in a file of your own, `shop.py`,
# the command does the same with `--config.data.name=shop:shop`.

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
# # Inventing an algorithm: one file, and its laws
#
# An algorithm is a factory that returns pure functions. The round, the layer
# types, cohorts, devices and evaluation are there already: a new algorithm says
# only what is different. This notebook invents one, proves on a toy that it is
# what it says, and puts it into the table.
#
# It takes about a minute on two CPU cores. It is written for CPU, GPU and
# TPU runtimes; it has never been run on a TPU.

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
# ## The idea
#
# FedProx holds clients near the server's model with a proximal term,
# $F_m(w) + \frac{\mu}{2} \lVert w - w^r \rVert^2$. At first that keeps unlike
# clients together; later it is in their way. Let the term fade:
# $\mu_r = \mu\,\delta^r$ in round $r$.
#
# ## The file
#
# What stands in this cell may stand in a file, `fading.py`. `SPEC` says what it
# is called, which settings it has with which ranges, and where it is a simpler
# algorithm.

# %%
from fmtl_jax import algorithms
from fmtl_jax import clients
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import specs


def fading(federation, local, settings, *, mu=0.5, decay=0.9):
  """FedProx with a proximal term that fades from round to round."""
  SPEC.check(mu=mu, decay=decay)
  update = clients.local_sgd(
    federation, local, proximal=lambda round_number: mu * decay**round_number
  )
  return federated_averaging.federated_averaging(federation, update, settings)


SPEC = algorithms.Spec(
  name='fading',
  label='Fading prox',
  doc=fading.__doc__,
  family=specs.GLOBAL,
  year=2026,
  build=fading,
  label_rules=fedavg.label_rules,
  settings={
    'mu': algorithms.Setting(
      help='Weight of the proximal term at first.',
      least=0,
      examples=(0.0, 0.5),
    ),
    'decay': algorithms.Setting(
      help='By what it shrinks every round.',
      least=0,
      most=1,
      examples=(1.0, 0.5),
    ),
  },
  degenerate=(
    specs.Degenerate('is fedavg', {'mu': 0}),
    specs.Degenerate('is fedprox', {'decay': 1}),
  ),
)
if 'fading' not in algorithms.ALGORITHMS:  # A cell may run twice.
  algorithms.register(SPEC)

# %% [markdown]
# ## Its laws
#
# **In its limits it is another algorithm.** With `mu = 0` it is FedAvg and with
# `decay = 1` it is FedProx, up to rounding; with anything else it is neither.

# %%
import numpy as np

from fmtl_jax import testing

rng = np.random.default_rng(0)
toy_data = fmtl_jax.FederatedDataset.from_clients(
  features=rng.normal(size=(4, 6, 3)),
  labels=rng.integers(2, size=(4, 6)),
  client_tasks=[0, 0, 0, 0],
)
toy, _ = testing.toy_federation(('common', 'common'), toy_data)
local = fmtl_jax.LocalSgd(learning_rate=0.1, batch_size=2)


def trained(name, **own):
  """The parameters after three rounds on a toy."""
  result = fmtl_jax.fit(
    toy,
    name,
    toy_data,
    rounds=3,
    evaluate_every=3,
    local=local,
    compile_effort='low',
    progress=False,
    **own,
  )
  leaves = jax.tree.leaves(result.state.params)
  return np.concatenate([np.ravel(leaf) for leaf in leaves])


fedavg_ends, fedprox_ends = trained('fedavg'), trained('fedprox', mu=0.5)
ours = trained('fading', mu=0.5, decay=0.5)
np.testing.assert_allclose(trained('fading', mu=0.0), fedavg_ends, atol=1e-6)
np.testing.assert_allclose(
  trained('fading', mu=0.5, decay=1.0), fedprox_ends, atol=1e-6
)
for other in (fedavg_ends, fedprox_ends):
  assert np.abs(ours - other).max() > 1e-4
print('The limits hold.')

# %% [markdown]
# **By hand.** One client whose model is one number $b$ with the loss
# $(b - y)^2$. Two local steps of rate $\eta$ from $b_0 = 0$ in round $r$:
# $b_1 = 2\eta y$ and $b_2 = b_1 - \eta\,(2 (b_1 - y) + \mu\,\delta^r b_1)$.

# %%
target, rate, mu, decay = 3.0, 0.1, 0.5, 0.5
one, one_data = testing.mean_estimation([[target]], [0], 'common')
result = fmtl_jax.fit(
  one,
  'fading',
  one_data,
  rounds=2,
  evaluate_every=2,
  local=fmtl_jax.LocalSgd(learning_rate=rate, batch_size=0, epochs=2),
  compile_effort='low',
  progress=False,
  mu=mu,
  decay=decay,
)
b = 0.0
for number in range(2):
  start = b
  for _ in range(2):
    pull = mu * decay**number * (b - start)
    b -= rate * (2 * (b - target) + pull)
(found,) = jax.tree.leaves(result.state.params)
np.testing.assert_allclose(np.ravel(found), [b], rtol=1e-6)
print(f'{b:.6f} by hand, {float(np.ravel(found)[0]):.6f} by the round')

# %% [markdown]
# In a checkout the rest comes by itself: a file in `fmtl_jax/algorithms/` is
# found, and all laws of algorithms are asked of it (that numbering, padding,
# devices and stops change nothing): WORKSPACE.md, *How to add*.
#
# ## In the table
#
# Fifty clients with unlike digits. Settings of an algorithm stand in the config
# under its name, as do those of the package's own.

# %%
from fmtl_jax.configs import digits
from fmtl_jax.experiments import run

config = digits.get_config('smoke' if SMOKE else '')
config.data.partition = 'dirichlet'
config.data.alpha = 0.3
config.client.learning_rate = 0.3
config.algorithm.mu = 0.5  # Of FedProx.
config.algorithm.fading.mu = 0.5
config.algorithm.fading.decay = 0.95
config.overrides = {}  # Those of the file are for other rows.
config.cases = ('fedavg', 'fedprox', 'fading')
config.run.seeds = 2
config.report.baseline = 'fedavg'
config.report.curve_case = ''
results = run(config)
results

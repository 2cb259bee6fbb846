#!/usr/bin/env bash
# dp-accounting 0.6.0: the noise multiplier of a `GaussianDpEvent` inside
# `SampledWithoutReplacementDpEvent` is relative to what replacing one member
# changes. With updates clipped to C that is 2 C, not C as for Poisson sampling.
# Whoever passes the z of "noise of z C" to both sees twice the epsilon of
# Poisson sampling (23.6 against 12.0; 1,000 members, 50 a round, z 1, 1,000
# rounds, delta 1e-5), where it is twenty times as much (251.5, of z / 2). No
# error or warning says so, and the accountant by PLD does not take the event.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  dp-accounting==0.6.0
cat > "$folder/run.py" <<'EOF'
import dp_accounting
from dp_accounting import pld
from dp_accounting import rdp

MEMBERS, COHORT, ROUNDS, DELTA = 1000, 50, 1000, 1e-5
REPLACE = dp_accounting.NeighboringRelation.REPLACE_ONE
ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def fixed(z):
  return dp_accounting.SampledWithoutReplacementDpEvent(
    MEMBERS, COHORT, dp_accounting.GaussianDpEvent(z)
  )


def epsilon(relation, event):
  accountant = rdp.RdpAccountant(neighboring_relation=relation)
  return accountant.compose(event, ROUNDS).get_epsilon(DELTA)


poisson = dp_accounting.PoissonSampledDpEvent(
  COHORT / MEMBERS, dp_accounting.GaussianDpEvent(1.0)
)
print(
  f'{epsilon(ADD_OR_REMOVE, poisson):.1f}',
  f'{epsilon(REPLACE, fixed(1.0)):.1f}',
  f'{epsilon(REPLACE, fixed(0.5)):.1f}',
  pld.PLDAccountant(REPLACE).supports(fixed(1.0)),
)
EOF
seen=$("$folder/venv/bin/python" "$folder/run.py" 2> /dev/null)
echo "Poisson z | fixed z | fixed z/2 | PLD takes it: $seen"
[ "$seen" = '12.0 23.6 251.5 False' ] || { echo 'CHANGED'; exit 1; }
echo 'as described'

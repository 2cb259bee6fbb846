#!/usr/bin/env bash
# tensorboardX 2.6.5 with tensorboard 2.21.0: `add_hparams` writes for every run
# which settings there are, and the tab HParams takes those of one run for the
# columns of all. A setting that this run lacks has no column, and neither has a
# metric; the other runs are listed without them. Cure: runs without that
# summary (only session start and end): TensorBoard collects the columns then.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  numpy==2.2.6 'setuptools<81' tensorboard==2.21.0 tensorboardX==2.6.5
cat > "$folder/run.py" <<'EOF'
import logging
import sys

from tensorboard import context
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context
from tensorboardX import SummaryWriter
from tensorboardX import summary

logging.disable(logging.WARNING)
RUNS = {
  'fedavg': {'rate': 0.1},
  'fedprox': {'rate': 0.1, 'mu': 0.5},
  'ditto': {'rate': 0.1, 'lam': 0.3},
}


def columns(folder):
  """The columns that the tab has."""
  runs = plugin_event_multiplexer.EventMultiplexer()
  runs.AddRunsFromDirectory(folder)
  runs.Reload()
  provider = data_provider.MultiplexerDataProvider(runs, folder)
  tab = backend_context.Context(
    base_plugin.TBContext(data_provider=provider, logdir=folder)
  )
  request = context.RequestContext()
  found = tab.experiment_from_metadata(
    request, '', True, tab.hparams_metadata(request, ''), []
  )
  return sorted(info.name for info in found.hparam_infos)


usual, cured = (f'{sys.argv[1]}/{name}' for name in ('usual', 'cured'))
for name, settings in RUNS.items():
  with SummaryWriter(usual) as writer:
    writer.add_hparams(settings, {'accuracy': 1.0}, name=name)
  with SummaryWriter(f'{cured}/{name}') as writer:
    _, start, end = summary.hparams(settings, {})
    writer.file_writer.add_summary(start)
    writer.add_scalar('accuracy', 1.0)
    writer.file_writer.add_summary(end)
print(len(columns(usual)) < 3, columns(cured))
EOF
seen=$("$folder/venv/bin/python" "$folder/run.py" "$folder" 2>/dev/null)
echo "settings without a column, columns without that summary: $seen"
[ "$seen" = "True ['lam', 'mu', 'rate']" ] || { echo 'CHANGED'; exit 1; }
echo 'as described'

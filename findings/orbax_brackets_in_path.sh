#!/usr/bin/env bash
# orbax-checkpoint 0.12.0: in a folder whose path holds [...], such as run[1], a
# checkpoint is written without an error and without its arrays. It is found out
# when it is read. Parts are written first, and merged where a pattern finds
# them that is made of the path itself. The other signs of patterns, * and ?,
# match themselves. Cure: another folder, or `use_ocdbt=False`, which merges
# nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.2.6 orbax-checkpoint==0.12.0
cat > "$folder/run.py" <<'EOF'
import logging
import pathlib
import sys

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
array = np.arange(3.0)


def round_trip(path, **settings):
  handler = ocp.PyTreeCheckpointHandler(**settings)
  checkpointer = ocp.Checkpointer(handler)
  checkpointer.save(path, {'w': array})
  try:
    found = checkpointer.restore(path)['w']
  except (ValueError, FileNotFoundError) as error:
    return 'lost: ' + str(error).split(' [')[0].split(':')[0]
  return 'read' if np.array_equal(found, array) else 'other values'


for name in ('run1', 'run*1?', 'run[1]'):
  parent = pathlib.Path(sys.argv[1]) / name
  parent.mkdir()
  print(f'{name}: {round_trip(parent / "default")}')
print('run[1] without OCDBT:', round_trip(parent / 'plain', use_ocdbt=False))
EOF
mkdir "$folder/runs"
"$folder/venv/bin/python" "$folder/run.py" "$folder/runs" 2> "$folder/errors" |
  tee "$folder/out" || { cat "$folder/errors"; exit 1; }
cat > "$folder/expected" <<'EOF'
run1: read
run*1?: read
run[1]: lost: NOT_FOUND
run[1] without OCDBT: read
EOF
diff "$folder/expected" "$folder/out" || { echo 'CHANGED'; exit 1; }
echo 'as described'

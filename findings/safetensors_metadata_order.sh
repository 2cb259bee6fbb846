#!/usr/bin/env bash
# safetensors 0.8.0, metadata of files: with several entries their order in the
# header is another one in every process, so that the same tensors and the same
# metadata give files with other checksums. With one entry the bytes are the
# same. Cure: one entry, whose value is a JSON text with sorted keys.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  numpy==2.2.6 safetensors==0.8.0
cat > "$folder/run.py" <<'EOF'
import hashlib
import sys

import numpy as np
from safetensors import numpy as st

count, path = int(sys.argv[1]), sys.argv[2]
metadata = {f'entry {number}': 'value' for number in range(count)}
st.save_file({'a': np.zeros(2)}, path, metadata)
content = open(path, 'rb').read()
print(hashlib.sha256(content).hexdigest())
EOF
for entries in 1 8; do
  for run in 1 2 3 4 5 6; do
    "$folder/venv/bin/python" "$folder/run.py" $entries "$folder/f.$entries.$run"
  done > "$folder/out.$entries"
done
one=$(sort -u "$folder/out.1" | wc -l)
many=$(sort -u "$folder/out.8" | wc -l)
echo "different files of six processes: one entry $one, eight entries $many"
[ "$one" = 1 ] && [ "$many" -gt 1 ] ||
  { echo 'CHANGED'; exit 1; }
echo 'as described'

#!/usr/bin/env bash
# safetensors 0.8.0, metadata of files: with several entries their order in the
# header is another one in every process, so that the same tensors and the same
# metadata give files with other checksums. With one entry the bytes are the
# same. Cure: one entry, whose value is a JSON text with sorted keys.
# Beside it, `save_file` makes files that nobody else can read (mode 600),
# whatever the umask says; `open(path, 'wb').write(save(...))` has the usual one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  numpy==2.2.6 safetensors==0.8.0
cat > "$folder/run.py" <<'EOF'
import hashlib
import os
import sys

import numpy as np
from safetensors import numpy as st

os.umask(0o022)
count, path = int(sys.argv[1]), sys.argv[2]
metadata = {f'entry {number}': 'value' for number in range(count)}
st.save_file({'a': np.zeros(2)}, path, metadata)
content = open(path, 'rb').read()
print(hashlib.sha256(content).hexdigest(), oct(os.stat(path).st_mode & 0o777))
EOF
for entries in 1 8; do
  for run in 1 2 3 4 5 6; do
    "$folder/venv/bin/python" "$folder/run.py" $entries "$folder/f.$entries.$run"
  done > "$folder/out.$entries"
done
one=$(cut -d' ' -f1 "$folder/out.1" | sort -u | wc -l)
many=$(cut -d' ' -f1 "$folder/out.8" | sort -u | wc -l)
modes=$(cut -d' ' -f2 "$folder"/out.* | sort -u | tr '\n' ' ')
echo "different files of six processes: one entry $one, eight entries $many"
echo "modes: $modes"
[ "$one" = 1 ] && [ "$many" -gt 1 ] && [ "$modes" = '0o600 ' ] ||
  { echo 'CHANGED'; exit 1; }
echo 'as described'

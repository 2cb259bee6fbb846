#!/usr/bin/env bash
# safetensors 0.8.0 and ml_dtypes: `safetensors.numpy.save` makes bytes of arrays
# of bfloat16, and `load` of the same module cannot read its own bytes
# (KeyError: 'BF16'), nor the tensors of other types beside them, while
# `load_file` reads the same bytes from a file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  ml_dtypes==0.5.1 numpy==2.2.6 safetensors==0.8.0
cat > "$folder/run.py" <<'EOF'
import sys

import ml_dtypes
import numpy as np
from safetensors import numpy as st

path = sys.argv[1]
tensors = {'a': np.ones(2, np.float32), 'b': np.ones(2, ml_dtypes.bfloat16)}
content = st.save(tensors)
open(path, 'wb').write(content)
try:
  loaded = st.load(content)['a'].dtype
except KeyError as error:
  loaded = f'KeyError {error}'
print(loaded, '|', st.load_file(path)['b'].dtype)
EOF
seen=$("$folder/venv/bin/python" "$folder/run.py" "$folder/model.safetensors")
echo "load | load_file: $seen"
[ "$seen" = "KeyError 'BF16' | bfloat16" ] || { echo 'CHANGED'; exit 1; }
echo 'as described'

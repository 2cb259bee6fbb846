#!/usr/bin/env bash
# Flower 1.42.0, `flower-superlink` with a certificate for the name by which all
# clients call it: they connect, commands and nodes are answered, but no run
# will ever start. The SuperLink's own executor calls the API of the same
# process as https://127.0.0.1 where it listens on 0.0.0.0, and refuses that
# certificate; only the log of the server says so, again and again. Cure:
# 127.0.0.1 among the subject alternative names of the certificate.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check "flwr==1.42.0"
export PATH="$folder/venv/bin:$PATH" FLWR_HOME="$folder/home"
export FLWR_TELEMETRY_ENABLED=0
cat > certificate.py <<'EOF'
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

def sign(name, key, extension):
  now = datetime.datetime.now(datetime.timezone.utc)
  names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, x)])
           for x in ('authority', name)]
  made = x509.CertificateBuilder(
    *names, key.public_key(), x509.random_serial_number(),
    now - datetime.timedelta(days=1), now + datetime.timedelta(days=2))
  made = made.add_extension(extension, False).sign(authority, hashes.SHA256())
  open(name, 'wb').write(made.public_bytes(s.Encoding.PEM))

authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
sign('authority', authority, x509.BasicConstraints(True, None))
loopback = x509.IPAddress(ipaddress.ip_address('127.0.0.1'))
for name, others in (('named', []), ('both', [loopback])):
  names = [x509.DNSName('localhost'), *others]
  sign(name, key, x509.SubjectAlternativeName(names))
open('key', 'wb').write(key.private_bytes(
  s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
EOF
python certificate.py
seen=''
for certificate in named both; do
  port=$(python -c \
    'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  flower-superlink --host=0.0.0.0 --port="$port" \
    --disable-runtime-dependency-installation --ssl-ca-certfile=authority \
    --ssl-certfile="$certificate" --ssl-keyfile=key >"$certificate.log" 2>&1 &
  for _ in $(seq 60); do
    sleep 1
    ! grep -q 'startup complete' "$certificate.log" || break
  done
  sleep 20
  mkdir -p home
  printf '[superlink.it]\naddress = "localhost:%s"\nroot-certificates = "%s"\n' \
    "$port" "$folder/authority" > home/config.toml
  flwr supernode list it >/dev/null && command='answered' || command='refused'
  grep -q "not valid for '127.0.0.1'" "$certificate.log" &&
    executor='refuses it' || executor='content'
  seen+="$certificate: a command $command, the executor $executor"$'\n'
  kill %%
  wait %% || true
done
expected="named: a command answered, the executor refuses it
both: a command answered, the executor content
"
printf '%s' "$seen"
[ "$seen" = "$expected" ] || { echo 'CHANGED'; exit 1; }
echo 'as described'

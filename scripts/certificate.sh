#!/usr/bin/env bash
# Makes a CA that signs exactly one certificate, the registry's, and whose key is then deleted; and a password.
# usage: certificate.sh ADDRESS   (IP or DNS name)
# prints {"ca", "certificate", "key", "password"}; the caller keeps it secret
set -euo pipefail
umask 077
address=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
case $address in *[!0-9.]*) san=DNS:$address ;; *) san=IP:$address ;; esac
new_key() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "$@" 2>log || failed; }
failed() {
  echo "error: openssl cannot make the registry's certificate for $address: $(tail -n 1 log)" >&2
  exit 1
}
new_key -x509 -days 3650 -subj '/CN=spdk-k8s registry CA' -keyout ca.key -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
new_key -subj '/CN=spdk-k8s registry' -keyout server.key -out server.csr
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$san" >ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile ext -out server.crt 2>log || failed
openssl rand -hex 24 | tr -d '\n' >password
jq -nc --rawfile ca ca.crt --rawfile certificate server.crt --rawfile key server.key --rawfile password password \
  '{$ca, $certificate, $key, $password}'

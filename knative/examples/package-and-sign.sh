#!/usr/bin/env bash
# A sign step of your own, with bash, GNU tar, coreutils and openssl: docs/signing.md says what it has to do. Put what
# your key service needs into `sign_bytes`, what your bucket needs into `publish`; promote verifies the result like ours.
set -euo pipefail
umask 077
fail() { local code=$1; shift; printf 'sign: %s\n' "$*" >&2; exit "$code"; }

for name in AEGIS_MODEL AEGIS_ENVIRONMENT AEGIS_DIGEST AEGIS_WORKFLOW_UID AEGIS_MODELS_URI AEGIS_SIGNING_KEY; do
  [[ -n ${!name:-} ]] || fail 64 "$name is missing"
done
name_form='^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'
[[ $AEGIS_MODEL =~ $name_form && $AEGIS_ENVIRONMENT =~ $name_form ]] || fail 64 "bad model or environment"
[[ $AEGIS_SIGNING_KEY == file:///* && $AEGIS_MODELS_URI == file:///* ]] || fail 64 "this example knows file:/// only"
key=${AEGIS_SIGNING_KEY#file://} store=${AEGIS_MODELS_URI#file://}
model=${AEGIS_MODEL_DIR:-/aegis/model} out=${AEGIS_OUT:-/aegis/out}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

sha256() { sha256sum "$@" | cut -d' ' -f1; }
base64_of() { base64 -w0 "$@"; }
# The DER signature over the sha256 of standard input. With Vault: POST its digest to transit/sign, token in a file.
sign_bytes() { openssl dgst -sha256 -sign "$key" || fail 77 "the key does not sign"; }
publish() { # create-only: what is there is kept, and must be the same or verify
  mkdir -p "$(dirname "$2")" && cp "$1" "$2.new.$$" && { ln "$2.new.$$" "$2" 2>/dev/null || true; } && rm "$2.new.$$"
}

# Every file, by path components. Names that JSON would have to escape, links and the like are not for this example.
[[ -z $(find "$model" ! -type f ! -type d -print -quit) ]] || fail 65 "unsafe model: something is no regular file"
find "$model" -type f -printf '%P\n' | tr / '\001' | LC_ALL=C sort | tr '\001' / > "$work/files"
[[ -s $work/files ]] || fail 65 "an empty model"
! LC_ALL=C grep -qvE '^[A-Za-z0-9._/ -]{1,100}$' "$work/files" || fail 65 "a name that this example does not take"
! grep -qiE '(^|/)\.git|\.(pkl|pickle|joblib|dill|cloudpickle|pt|pth|ckpt)$' "$work/files" || fail 65 "unsafe model"
tar --create --file "$work/model.tar" --directory "$model" --format=ustar --mtime=@0 --owner=0 --group=0 \
  --numeric-owner --mode=0644 --no-recursion --verbatim-files-from --files-from "$work/files"

# What is signed is what was packed: the digests are those of the archive's members.
resources='' raw=''
while IFS= read -r file; do
  digest=$(tar --extract --to-stdout --file "$work/model.tar" -- "$file" | sha256)
  resources+=${resources:+,}"{\"name\":\"$file\",\"algorithm\":\"sha256\",\"digest\":\"$digest\"}"
  raw+=$(sed 's/../\\x&/g' <<< "$digest")
done < "$work/files"
root=$(printf '%b' "$raw" | sha256) tar_sha256=$(sha256 "$work/model.tar")
[[ $root == "$AEGIS_DIGEST" ]] || fail 76 "this is not the model that the gate judged"

openssl pkey -in "$key" -pubout -out "$work/signer.pub" 2>/dev/null || fail 77 "the key cannot be read"
material="{\"publicKey\":{\"hint\":\"$(sha256 "$work/signer.pub")\"},\"tlogEntries\":[]}"
start="{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\",\"verificationMaterial\":$material"
statement() { # FILE with a statement: the bundle around its DSSE envelope
  local type=application/vnd.in-toto+json signature
  signature=$({ printf 'DSSEv1 %d %s %d ' ${#type} $type "$(wc -c < "$1")"; cat "$1"; } | sign_bytes | base64_of)
  printf '%s,"dsseEnvelope":{"payload":"%s","payloadType":"%s","signatures":[{"sig":"%s","keyid":""}]}}' \
    "$start" "$(base64_of "$1")" $type "$signature"
}
subject="{\"name\":\"$AEGIS_MODEL\",\"digest\":{\"sha256\":\"$root\"}}"
type='"_type":"https://in-toto.io/Statement/v1"'
serialization='{"method":"files","hash_type":"sha256","allow_symlinks":false}'
printf '{%s,"subject":[%s],"predicateType":"https://model_signing/signature/v1.0","predicate":{"serialization":%s,"resources":[%s]}}' \
  "$type" "$subject" "$serialization" "$resources" > "$work/model.json"
told() { base64 -d <<< "${AEGIS_EVENT:-}" 2>/dev/null | sed -nE "s/.*\"$1\": ?\"([A-Za-z0-9._:-]{0,200})\".*/\1/p"; }
printf '{%s,"subject":[{"name":"model.tar","digest":{"sha256":"%s"}},%s],"predicateType":"https://slsa.dev/provenance/v1",
"predicate":{"buildDefinition":{"buildType":"https://aegis.dev/retrain/v1","externalParameters":{"model":"%s","environment":"%s",
"event_id":"%s","fingerprint":"%s"},"internalParameters":{},"resolvedDependencies":[]},
"runDetails":{"builder":{"id":"https://example.com/own-signer"},"metadata":{"invocationId":"%s"}}}}' \
  "$type" "$tar_sha256" "$subject" "$AEGIS_MODEL" "$AEGIS_ENVIRONMENT" "$(told event_id)" "$(told fingerprint)" \
  "$AEGIS_WORKFLOW_UID" > "$work/provenance.json"

statement "$work/model.json" > "$work/model.sig"
statement "$work/provenance.json" > "$work/provenance.sigstore.json"
digest=$(printf '%b' "$(sed 's/../\\x&/g' <<< "$tar_sha256")" | base64_of)
printf '%s,"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"%s"},"signature":"%s"}}' \
  "$start" "$digest" "$(sign_bytes < "$work/model.tar" | base64_of)" > "$work/model.tar.sigstore.json"
printf '{"format":1,"tar_sha256":"%s","root_digest":"%s"}\n' "$tar_sha256" "$root" > "$work/result.json"

# result.json comes last: it marks the package as complete.
for file in model.tar signer.pub model.sig model.tar.sigstore.json provenance.sigstore.json result.json; do
  publish "$work/$file" "$store/packages/$AEGIS_ENVIRONMENT/$AEGIS_MODEL/$tar_sha256/$file" || fail 75 "not published"
done
mkdir -p "$out" && printf '%s' "$tar_sha256" > "$out/package"
printf 'signed %s/%s as package %s\n' "$AEGIS_ENVIRONMENT" "$AEGIS_MODEL" "$tar_sha256"

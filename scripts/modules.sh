#!/usr/bin/env bash
# Puts modules of the kernel that install.sh has placed, and all that they need, into DIR, unpacked and numbered in the order to load them in.
# usage: modules.sh DIR MODULE...    DIR is there
set -euo pipefail
[ $# -ge 2 ] || {
  printf 'usage: modules.sh DIR MODULE...\n' >&2
  exit 2
}
dir=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
fail() {
  printf 'modules: %s\n' "$*" >&2
  exit 1
}
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/nested")
export PATH="$work/tools/bin:$PATH:/usr/sbin:/sbin"
release=$(cat "$work/kernel/release")
number=10
for wanted in "$@"; do
  paths=$(modprobe -C /dev/null -d "$work/kernel" -S "$release" --show-depends "$wanted") || fail "the kernel $release has no $wanted"
  while read -r kind module _; do
    # What is built in has no file.
    [ "$kind" = insmod ] || continue
    name=$(basename "$module")
    # What several need is there already.
    ! compgen -G "$dir/[0-9][0-9]-${name%.ko*}.ko" > /dev/null || continue
    case $name in
      *.ko) cp "$module" "$dir/$number-$name" ;;
      *.ko.xz) xz -dc "$module" > "$dir/$number-${name%.xz}" ;;
      *.ko.zst) zstd -qdc "$module" > "$dir/$number-${name%.zst}" ;;
      *) fail "cannot unpack the module $name" ;;
    esac
    number=$((number + 1))
  done <<< "$paths"
done

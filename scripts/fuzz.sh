#!/usr/bin/env bash
# Fuzzes everything that decodes bytes, with libFuzzer and whatever Rust there is: neither a nightly toolchain nor cargo-fuzz is needed.
# A C++ compiler is needed, for libFuzzer itself. SLACKWATER_SEED makes a run with the same corpus the same run.
# usage: fuzz.sh [SECONDS [TARGET...]]    default: each target of fuzz/fuzz_targets for 15 s
# What it learns stays in fuzz/corpus of cargo's target directory and is begun with the next time. An input that fails is kept in
# fuzz/artifacts there; its place for good, once the bug is gone, is fuzz/corpus/TARGET in the source tree, which the tests replay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
seconds=${1:-15}
shift $(($# > 0))
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
  for file in fuzz/fuzz_targets/*.rs; do
    targets+=("$(basename "$file" .rs)")
  done
fi
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target_dir/fuzz

say() { printf 'fuzz: %s\n' "$*"; }
fail() {
  say "FAILED: $*" >&2
  exit 1
}

# What cargo-fuzz passes, without its sanitizer: counters at every edge and the operands of comparisons.
flags="-Cpasses=sancov-module --cfg fuzzing"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
host=$(rustc -vV | sed -n 's/^host: //p')
say "building ${targets[*]}"
# With a target named, the flags are not for build scripts.
RUSTFLAGS=$flags CARGO_TARGET_DIR=$work timeout --foreground -k 10 900 \
  cargo build --locked --release --manifest-path fuzz/Cargo.toml --target "$host" "${targets[@]/#/--bin=}" < /dev/null ||
  fail "the build failed, or took longer than 900 s"

# Chains are files: in memory where that is possible, for speed.
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" slackwater-fuzz.XXXXXX)
child=
trap '[ -z "$child" ] || kill "$child" 2> /dev/null || true; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for target in "${targets[@]}"; do
  corpus=$work/corpus/$target
  seeds=$scratch/$target.seeds
  mkdir -p "$corpus" "$seeds" "$work/artifacts"
  inputs=("$corpus" "$seeds")
  [ ! -d "fuzz/corpus/$target" ] || inputs+=("fuzz/corpus/$target")
  log=$work/$target.log
  status=0
  RUST_BACKTRACE=1 TMPDIR=$scratch SLACKWATER_FUZZ_SEEDS=$seeds timeout -k 10 $((seconds + 120)) \
    "$work/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=131072 -len_control=0 \
    -print_final_stats=1 -artifact_prefix="$work/artifacts/$target-" ${SLACKWATER_SEED:+-seed="$SLACKWATER_SEED"} \
    "${inputs[@]}" < /dev/null > "$log" 2>&1 &
  child=$!
  wait "$child" || status=$?
  child=
  if [ "$status" != 0 ]; then
    tail -n 60 "$log" >&2
    fail "$target ended with status $status; the whole log is $log"
  fi
  say "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, $(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1) edges, $(find "$corpus" -type f | wc -l) kept; nothing found"
done

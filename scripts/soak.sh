#!/usr/bin/env bash
# Runs the long versions of what draws by seeds: tests with full numbers, kills, simulators and fuzzers, with ever new seeds, until the time is over.
# usage: soak.sh [MINUTES]    default: 30. SLACKWATER_SEED makes the first seed that number; the others follow from it.
# Ends at the first failure, and says the seed. Whatever runs when the time is over is ended, which is no failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
minutes=${1:-30}
[[ $minutes =~ ^[1-9][0-9]{0,5}$ ]] || {
  printf 'usage: soak.sh [MINUTES]\n' >&2
  exit 2
}
# Nothing needs longer by itself, however long the soak is.
step_limit_s=7200
fuzz_s=60

say() { printf 'soak: %s\n' "$*"; }
fail() {
  say "FAILED: $*" >&2
  exit 1
}

log=$(mktemp)
child=
trap '[ -z "$child" ] || kill "$child" 2> /dev/null || true; rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The tests that draw, or have full numbers, are those of the files that ask for either: tests/native/kill.rs has native::kill.
say "building the tests"
timeout --foreground -k 10 1500 cargo test --locked --no-run --lib --test integration --message-format=json-render-diagnostics < /dev/null > "$log" ||
  fail "the build failed, or took longer than 1500 s"
program() { sed -n "/\"kind\":\[\"$1\"\]/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$log" | tail -n 1; }
declare -A programs=([lib]="$(program lib)" [test]="$(program test)")
steps=()
for kind in lib test; do
  root=$([ "$kind" = lib ] && echo src || echo tests)
  [ -x "${programs[$kind]}" ] || fail "cargo did not say where it put the tests"
  modules=$(grep -rlE 'Random::seeded\(|rounds\(|seeds\(|full\(\)|SLACKWATER_(SEED|FULL)' --include='*.rs' "$root" |
    sed -e "s:^$root/::" -e 's:\.rs$::' -e 's:/mod$::' -e 's:/:\:\::g' | grep -v '^support')
  filter=$(printf '%s\n' "$modules" | sed 's/.*/^&::/' | paste -sd '|')
  mapfile -t found < <("${programs[$kind]}" --list 2> /dev/null | sed -n 's/: test$//p' | grep -E "$filter")
  steps+=("${found[@]/#/$kind }")
done
for target in fuzz/fuzz_targets/*.rs; do
  ! command -v c++ > /dev/null || steps+=("fuzz $(basename "$target" .rs)")
done
[ "${#steps[@]}" -gt 4 ] || fail "there is nothing to run"

seed=${SLACKWATER_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
say "$minutes min of ${#steps[@]} kinds in turn, from seed $seed on"
export SLACKWATER_FULL=1 CARGO_MANIFEST_DIR=$PWD RUST_BACKTRACE=1
[ ! -e /dev/kvm ] || export SLACKWATER_REQUIRE_KVM=1
begun_s=$SECONDS
declare -A ran=()
count=0 ended=
while [ -z "$ended" ]; do
  # Another order each time around: a short soak, too, gets to everything in the long run.
  mapfile -t order < <(printf '%s\n' "${steps[@]}" | shuf --random-source=<(yes "$seed"))
  for step in "${order[@]}"; do
    left_s=$((begun_s + minutes * 60 - SECONDS))
    [ "$left_s" -gt 0 ] || {
      ended=yes
      break
    }
    limit_s=$((left_s < step_limit_s ? left_s : step_limit_s))
    read -r kind name <<< "$step"
    export SLACKWATER_SEED=$seed
    step_s=$SECONDS status=0
    if [ "$kind" = fuzz ]; then
      # What it builds the first time is not counted in its time.
      timeout -k 10 "$limit_s" scripts/fuzz.sh "$fuzz_s" "$name" < /dev/null > "$log" 2>&1 &
    else
      timeout -k 10 "$limit_s" "${programs[$kind]}" --exact "$name" --test-threads=1 < /dev/null > "$log" 2>&1 &
    fi
    child=$!
    wait "$child" || status=$?
    child=
    took_s=$((SECONDS - step_s))
    case $status in
      0)
        if grep -q '^SKIP ' "$log"; then
          say "$name: $(grep -m 1 '^SKIP ' "$log")"
          continue
        fi
        say "$name, seed $seed: passed in $took_s s"
        ;;
      124 | 137)
        if [ "$limit_s" = "$step_limit_s" ] && [ "$left_s" -gt "$step_limit_s" ]; then
          tail -n 200 "$log" >&2
          fail "$name, SLACKWATER_SEED=$seed: not done after $took_s s"
        fi
        say "$name, seed $seed: ended after $took_s s, for the time is over"
        ended=yes
        break
        ;;
      *)
        tail -n 200 "$log" >&2
        fail "$name, SLACKWATER_SEED=$seed (exit status $status, after $took_s s); again: SLACKWATER_FULL=1 SLACKWATER_SEED=$seed"
        ;;
    esac
    ran[$name]=$((${ran[$name]:-0} + 1))
    count=$((count + 1))
    seed=$((seed + 1))
  done
done
for name in "${!ran[@]}"; do
  printf '%5d  %s\n' "${ran[$name]}" "$name"
done | sort -k 2
say "passed: $count runs of ${#ran[@]} kinds in $(((SECONDS - begun_s) / 60)) min, seeds $((seed - count)) to $((seed - 1))"

#!/usr/bin/env bash
# Runs the test lanes, and installs on Debian or Ubuntu what they need. See docs/testing.md.
# usage: test.sh [lint|nested|doc|fuzz|pure|native]    one lane; without a name: all of them
#        test.sh soak [MINUTES]    the long versions, with ever new seeds, for so long (30)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

# bounded SECONDS COMMAND...: in a process group of its own, which is ended with whatever it started when the time is up or this
# script is interrupted.
child=
bounded() {
  local limit_s=$1 status=0
  shift
  printf '+ %s\n' "$*"
  timeout -k 10 "$limit_s" "$@" < /dev/null &
  child=$!
  wait "$child" || status=$?
  child=
  case $status in
    0) ;;
    124 | 137) printf 'test: FAILED: ended after %s s: %s\n' "$limit_s" "$*" >&2 ;;
    *) printf 'test: FAILED (exit status %s): %s\n' "$status" "$*" >&2 ;;
  esac
  return "$status"
}
trap '[ -z "$child" ] || kill "$child"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the foreground, for sudo may ask for a password.
install() { timeout --foreground -k 10 900 scripts/install.sh "$1"; }

lint() {
  say "lint"
  bounded 60 cargo fmt --check
  bounded 1200 cargo clippy --locked --all-targets --all-features -- -D warnings
  bounded 900 cargo clippy --locked --no-default-features --lib --example read_chain -- -D warnings
  readers_need_no_kvm
  RUSTDOCFLAGS='-D warnings' bounded 600 cargo doc --locked --no-deps
  dependencies_are_allowed
  oldest_rust_builds_it
}

# The Rust that Cargo.toml promises to build with.
oldest_rust_builds_it() {
  local version
  version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if ! rustup run "$version" cargo --version > /dev/null 2>&1 &&
    ! { command -v rustup > /dev/null && bounded 600 rustup toolchain install "$version" --profile minimal --no-self-update; }; then
    printf 'test: ******** RUST %s CAN NOT BE HAD HERE: whether it builds this is not checked ********\n' "$version" >&2
    return 0
  fi
  CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}/oldest") bounded 900 rustup run "$version" cargo check --locked --all-features
}

# Licenses, sources and doubles of all dependencies (deny.toml). What the tool needs of a crate it asks cargo: no network.
dependencies_are_allowed() {
  local tools
  tools=$(realpath -m "${CARGO_TARGET_DIR:-target}/tools")
  if ! PATH=$PATH:$tools/bin command -v cargo-deny > /dev/null; then
    # Unoptimized, which takes a third of the time: it runs for a second.
    bounded 1200 cargo install --quiet --locked --debug --root "$tools" cargo-deny@0.20.2 || {
      printf 'test: ******** cargo-deny CAN NOT BE HAD HERE: licenses and sources of dependencies are not checked ********\n' >&2
      return 0
    }
  fi
  PATH=$PATH:$tools/bin bounded 120 cargo deny --offline --locked check bans licenses sources
}

# Chains are read, verified and exported without a feature, and without a crate that knows KVM.
readers_need_no_kvm() {
  local found
  found=$(cargo tree --locked --no-default-features --edges normal --prefix none < /dev/null |
    grep -E '^(kvm-|vm-|virtio-|linux-loader|acpi_tables)' || true)
  [ -z "$found" ] || {
    printf 'test: FAILED: without a feature the library needs %s\n' "${found//$'\n'/, }" >&2
    return 1
  }
  bounded 900 cargo run --locked --no-default-features --example read_chain -- checkpoints/golden/plain
}

nested() {
  say "nested: the native tests on mainline KVM"
  bounded 4200 scripts/nested.sh
}

doc() {
  say "doctests"
  bounded 900 cargo test --locked --doc
}

fuzz() {
  say "fuzz: each decoder for a moment"
  if ! command -v c++ > /dev/null; then
    printf 'test: ******** NO C++ COMPILER HERE (apt-get install g++): nothing is fuzzed, the tests replay the corpus ********\n' >&2
    return 0
  fi
  bounded 1500 scripts/fuzz.sh 15
}

# With /dev/kvm a native test must run: a skip fails.
require_kvm() {
  if [ -e /dev/kvm ]; then
    export SLACKWATER_REQUIRE_KVM=1
    if ! [ -r /dev/kvm ] || ! [ -w /dev/kvm ]; then
      printf 'test: /dev/kvm may not be opened by this user: the native tests will fail (is the user in the group kvm?)\n' >&2
    fi
    return 0
  fi
  printf 'test: ******** NO /dev/kvm HERE: native tests cannot run natively; only the nested lane runs them ********\n' >&2
  return 1
}

# A Linux guest for the native tests, where this KVM runs kernels: the command says.
give_linux() {
  local found linux
  bounded 1200 cargo build --locked
  found=$(timeout 300 cargo run --locked --quiet -- host --json < /dev/null | grep -o '"runs_kernels":{[^}]*}' || true)
  case $found in
    *'"ok":true'*) ;;
    *'"ok":false'*)
      printf 'test: this KVM runs no kernels (%s): only the nested lane runs the tests with a Linux guest\n' "$found"
      return 0
      ;;
    *)
      printf 'test: FAILED: slackwater host --json does not say whether this KVM runs kernels\n' >&2
      return 1
      ;;
  esac
  install nested
  linux=$(realpath -m "${CARGO_TARGET_DIR:-target}/nested")
  bounded 300 scripts/guest.sh "$linux/guest"
  ln -sf ../kernel/vmlinux "$linux/guest/vmlinux"
  export SLACKWATER_LINUX=$linux/guest
}

# Servers for the tests of witnesses, and of two hosts. Where apt and pip can fetch them, such a test must run: a skip fails.
give_witnesses() {
  if ! command -v apt-get > /dev/null || ! python3 -m pip --version > /dev/null 2>&1; then
    printf 'test: ******** NO apt-get OR NO pip HERE: witnesses are tested only with the servers that this system has ********\n' >&2
    return 0
  fi
  install witnesses
  SLACKWATER_WITNESSES=$(realpath -m "${CARGO_TARGET_DIR:-target}/witnesses")
  export SLACKWATER_WITNESSES
}

# tests all|pure|native
tests() {
  say "tests: $1"
  local profile=default
  give_witnesses
  if [ "$1" != pure ]; then
    if require_kvm; then
      give_linux
      profile=kvm
    elif [ "$1" = native ]; then
      printf 'test: FAILED: the native lane was asked for; scripts/test.sh nested needs no /dev/kvm\n' >&2
      return 1
    fi
  fi
  if cargo nextest --version > /dev/null 2>&1; then
    local filter
    case $1 in
      all) filter='all()' ;;
      pure) filter='not test(native)' ;;
      native) filter='test(native)' ;;
    esac
    bounded 2400 cargo nextest run --locked --profile "$profile" -E "$filter"
  else
    local targets=(--lib --bins --tests --examples)
    if [ "$1" != native ]; then
      bounded 1800 cargo test --locked "${targets[@]}" -- --skip native
    fi
    if [ "$1" != pure ]; then
      bounded 1800 cargo test --locked "${targets[@]}" native -- --test-threads=1
    fi
  fi
}

case ${1-all} in
  all)
    install nested
    lint
    nested
    doc
    fuzz
    tests all # last: the script ends with the test runner's own summary
    ;;
  lint)
    install build
    lint
    ;;
  nested)
    install nested
    nested
    ;;
  doc)
    install build
    doc
    ;;
  fuzz)
    install build
    fuzz
    ;;
  pure | native)
    install build
    tests "$1"
    ;;
  soak)
    install build
    give_witnesses
    ! require_kvm || give_linux
    say "soak"
    scripts/soak.sh "${2:-30}"
    ;;
  *)
    printf 'usage: test.sh [lint|nested|doc|fuzz|pure|native]\n       test.sh soak [MINUTES]\n' >&2
    exit 2
    ;;
esac

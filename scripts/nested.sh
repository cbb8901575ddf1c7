#!/usr/bin/env bash
# The nested lane: the native tests on mainline KVM. QEMU emulates an AMD processor with SVM and nested paging in software, boots
# a stock kernel with kvm-amd in it, and runs the tests of the library and of tests/main.rs whose path contains `native`.
# usage: nested.sh [TEST-FILTER]    default filter: native, and then the command is tried as well
# The kernel, tools that this machine lacks, and the console's last log (serial.log) are kept in nested/ of cargo's target directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
filter=${1:-native}
home=$PWD
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/nested")
export PATH="$work/tools/bin:$PATH:/usr/sbin:/sbin"
build_limit_s=1500
limit_s=${SLACKWATER_NESTED_LIMIT_S:-2400}

say() { printf 'nested: %s\n' "$*"; }
fail() {
  say "FAILED: $*" >&2
  exit 1
}

scripts/install.sh nested

# What a killed run left behind.
find "$work" -maxdepth 1 -name 'run.*' -mmin +120 -exec rm -rf {} +
run=$(mktemp -d "$work/run.XXXXXX")
trap 'rm -rf "$run"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Build. Cargo says where the programs are, one JSON object a line.
say "building the tests and the command"
timeout --foreground -k 10 "$build_limit_s" \
  cargo test --locked --no-run --lib --test integration --message-format=json-render-diagnostics < /dev/null > "$run/cargo" ||
  fail "the build failed, or took longer than $build_limit_s s"
artifact() { sed -n "/\"kind\":\[\"$1\"\]/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$run/cargo" | tail -n 1; }
lib_tests=$(artifact lib)
integration_tests=$(artifact test)
command=$(artifact bin)
for program in "$lib_tests" "$integration_tests" "$command"; do
  [ -x "$program" ] || fail "cargo did not say where it put the tests and the command"
done
# What is still to pass, one path of a test a line.
# Tests of files, floods, limits and words need a guest and not a certain KVM: where this machine has one, they run on that and not here as well.
# Those of two hosts need ip and etcd, which the emulated machine has not.
elsewhere='^native::two_hosts::'
if [ "$filter" = native ] && [ -e /dev/kvm ]; then
  elsewhere='^(bad_input|place|native::(export|failover|flood|full|limits|migrate|outcome|two_hosts|upkeep))::'
fi
for tests in lib integration; do
  program=${tests}_tests
  "${!program}" "$filter" --list | sed -n 's/: test$//p' | { grep -vE "$elsewhere" || true; } > "$run/$tests.left"
done
listed=$(cat "$run"/*.left | wc -l)
[ "$listed" -gt 0 ] || fail "no test has '$filter' in its path: there is nothing to run"

# Pack. The guest's root is one cpio archive in memory.
root=$run/root
mkdir -p "$root"/{bin,modules,slackwater}
add_with_libraries() { # PROGRAM PLACE
  local library
  cp -L "$1" "$root/$2"
  # ldd fails for a static program, which needs nothing more.
  for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do
    mkdir -p "$root$(dirname "$library")"
    cp -Ln "$library" "$root$library"
  done
}
add_with_libraries "$(command -v busybox)" bin/busybox
add_with_libraries "$lib_tests" slackwater/lib
add_with_libraries "$integration_tests" slackwater/integration
add_with_libraries "$command" slackwater/slackwater
if command -v strip > /dev/null; then
  strip --strip-debug "$root"/slackwater/{lib,integration,slackwater}
fi
mkdir "$root/slackwater/checkpoints"
[ ! -d checkpoints ] || cp -r checkpoints/. "$root/slackwater/checkpoints"

# A guest for the machine of the tests: the same kernel, as a bzImage and as the ELF image in it, with a shell and a disk.
scripts/guest.sh "$root/slackwater/linux"
cp "$work/kernel/vmlinux" "$root/slackwater/linux"

kernel=$work/kernel
release=$(cat "$kernel/release")
scripts/modules.sh "$root/modules" kvm-amd virtio_pci virtio_blk tun bridge
# A disk on which an exported core of a Linux guest leaves the machine, for tools that are here.
core=$run/core
truncate -s 256M "$core"

# The verdict leaves the guest through a second serial port, which only its init writes to: the console may hold anything a test or
# the kernel prints. After a panic or a hang there is none. The kernel of the lane has no /dev/port for QEMU's debug exit device.
verdict=$run/verdict
nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
quoted() { printf '%q' "$1"; }
cat > "$root/init" << INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=1 RUST_TEST_THREADS=1
export SLACKWATER_REQUIRE_KVM=1 SLACKWATER_NESTED=1 SLACKWATER_LINUX=/slackwater/linux${SLACKWATER_FULL:+ SLACKWATER_FULL=1}${SLACKWATER_SEED:+ SLACKWATER_SEED=$SLACKWATER_SEED}
export CARGO_MANIFEST_DIR=$(quoted "$home")
say() { echo "nested: \$*"; }
verdict() {
  echo "\$1 $nonce" > /dev/ttyS1
  for tty in /dev/ttyS1 /dev/console; do stty sane < \$tty; done # waits until everything is sent
  poweroff -f
}
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
ifconfig lo 127.0.0.1 up
for module in /modules/*; do
  insmod "\$module" || { say "cannot load \$module"; verdict failed; }
done
[ ! -b /dev/vda ] || export SLACKWATER_CORE=/dev/vda
[ -c /dev/kvm ] && [ -d /sys/module/kvm_amd ] || { say "no KVM in the guest"; verdict failed; }
# On a third serial port, for as long as this machine's processors go on: whatever a test waits for.
while :; do
  echo
  sleep 5
done > /dev/ttyS2 &
# Where a guest's vCPU was when it shut down. With this kernel's own registers, only an emulator can have put it there.
trace=/sys/kernel/tracing
mount -t tracefs trace \$trace
echo 'exit_reason == 0x7f' > \$trace/events/kvm/kvm_exit/filter && echo 1 > \$trace/events/kvm/kvm_exit/enable ||
  say "shutdowns can't be traced: none is taken for the emulator's doing"
# And what the machine's KVM did until the first of them.
history=\$trace/instances/history
mkdir \$history && echo 'traceoff if exit_reason == 0x7f' > \$history/events/kvm/kvm_exit/trigger &&
  for event in exit entry inj_virq inj_exception page_fault; do echo 1 > \$history/events/kvm/kvm_\$event/enable; done ||
  say "what comes before a shutdown can't be traced"
shutdowns() {
  sed -n 's/.*kvm_exit: .* rip 0x\([0-9a-f]*\).*/\1/p' \$trace/trace > /tmp/shutdowns
  grep '\[kvm_amd\]' /proc/kallsyms | sort | awk '
    NR == FNR { if (start != "" && end == "") end = \$1; if (\$3 == "__svm_vcpu_run") start = \$1; next }
    { own = length(\$1) == 16 && start != "" && start <= \$1 && \$1 < end
      print "nested: a vCPU shut down at " \$1 ", " (own ? "BEHIND THE VMRUN OF THIS KERNEL" : "which is no place of this kernel") }' - /tmp/shutdowns
  [ ! -s /tmp/shutdowns ] || { say "before the first:"; tail -n 80 \$history/trace; }
}
say "Linux \$(uname -r), KVM of kvm_amd, nested paging \$(cat /sys/module/kvm_amd/parameters/npt), up after \$(cut -d ' ' -f 1 /proc/uptime) s"
# Tests have paths of the build compiled in: the package's folder, the command, a scratch folder.
mkdir -p $(quoted "$home") $(quoted "$(dirname "$command")") $(quoted "$(dirname "$(dirname "$command")")/tmp")
ln -s /slackwater/checkpoints $(quoted "$home/checkpoints")
ln -s /slackwater/slackwater $(quoted "$command")
cd $(quoted "$home")
result=passed
for tests in lib integration; do
  [ -s /slackwater/\$tests.left ] || continue
  say "native tests of \$tests"
  /slackwater/\$tests --test-threads=1 --exact \$(cat /slackwater/\$tests.left)
  code=\$?
  [ \$code = 0 ] || { say "the tests of \$tests ended with exit code \$code"; result=failed; }
done
smoke() {
  for arguments in "checkpoint --vcpus 2 --memory 16M --guest churn:pages=1024 --budget 512 --audit 1 --for 5s" verify "restore --for 1s"; do
    say "slackwater \$arguments"
    verb=\${arguments%% *}
    /slackwater/slackwater \$verb --store /tmp/smoke \${arguments#\$verb} || { say "slackwater \$verb ended with exit code \$?"; return 1; }
  done
}
if [ $(quoted "$filter") = native ]; then
  smoke || result=failed
fi
shutdowns
say "all done, up for \$(cut -d ' ' -f 1 /proc/uptime) s"
verdict \$result
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) > "$run/root.cpio"

# Boot. The machine is started again, for the tests that have not passed yet, only where there is proof that the emulator did it (docs/testing.md):
# its own pulse stops, which is what a machine that hangs by itself does; or its own kernel panics, which no program on it may be able to do; or vCPUs
# of guests shut down with the registers of that kernel, as often as tests failed by a shutdown and in no other way. It is said aloud. Whatever else
# fails a test fails the lane.
pulse=$run/pulse
pulse_limit_s=150
# Longer than a test waits for anything without a word.
quiet_limit_s=700
boots_most=4
qemu=
boot() {
  local left_s=$1 last=0 size beats=0 beat status=0
  rm -f "$verdict" "$pulse"
  : > "$work/serial.log"
  # The kernel unpacks one archive after the other.
  mkdir -p "$run/left/slackwater"
  cp "$run"/*.left "$run/left/slackwater"
  { cat "$run/root.cpio"; (cd "$run/left" && find slackwater -type f | cpio --quiet -o -H newc); } > "$run/initrd"
  qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -serial "file:$work/serial.log" -serial "file:$verdict" -serial "file:$pulse" \
    -accel tcg,thread=multi -cpu max -smp 2 -m 2048 \
    -drive "file=$core,format=raw,if=none,id=core" -device virtio-blk-pci,drive=core \
    -kernel "$kernel/vmlinuz" -initrd "$run/initrd" -append 'console=ttyS0 panic=-1 mitigations=off quiet' \
    < /dev/null > "$run/qemu.log" 2>&1 &
  qemu=$!
  trap '[ -z "$qemu" ] || kill "$qemu" 2> /dev/null || true; rm -rf "$run"' EXIT
  tail -n +1 -F "$work/serial.log" --pid "$qemu" 2> /dev/null &
  local grew_s=$SECONDS beat_s=$SECONDS begun_s=$SECONDS
  while kill -0 "$qemu" 2> /dev/null; do
    sleep 1
    size=$(stat -c %s "$work/serial.log" 2> /dev/null || echo 0)
    if [ "$size" != "$last" ]; then
      last=$size
      grew_s=$SECONDS
    fi
    beat=$(stat -c %s "$pulse" 2> /dev/null || echo 0)
    if [ "$beat" != "$beats" ]; then
      beats=$beat
      beat_s=$SECONDS
    fi
    if [ $((SECONDS - beat_s)) -ge "$pulse_limit_s" ]; then
      kill -9 "$qemu" 2> /dev/null || true
      status=hung
    elif [ $((SECONDS - grew_s)) -ge "$quiet_limit_s" ]; then
      kill -9 "$qemu" 2> /dev/null || true
      status=quiet
    elif [ $((SECONDS - begun_s)) -ge "$left_s" ]; then
      kill -9 "$qemu" 2> /dev/null || true
      status=late
    fi
  done
  wait "$qemu" || [ "$status" != 0 ] || status=$?
  trap 'rm -rf "$run"' EXIT
  wait # for the last lines of the console
  boot_status=$status
}
shut_down='left the guest: Shutdown'
# Names of the tests that failed; with an argument those that failed otherwise than by a vCPU that shut down.
failed_tests() {
  awk -v otherwise="${1:-}" '
    function done() { if (name != "" && !(otherwise != "" && down)) print name; name = "" }
    { sub(/\r$/, "") }
    /^---- .* stdout ----$/ { done(); name = $2; down = 0 }
    /'"$shut_down"'/ { down = 1 }
    /^failures:$/ { done() }
    END { done() }' "$work/serial.log"
}
# Whether the emulator shut the guests down: each test that failed did so by a shutdown, and there was as often one that no guest can do.
emulator_did_it() {
  local failed proven
  [ "$(tr -d '\r\n' < "$verdict")" = "failed $nonce" ] && [ -z "$(failed_tests otherwise)" ] || return 1
  failed=$(failed_tests | wc -l)
  proven=$(grep -c 'BEHIND THE VMRUN OF THIS KERNEL' "$work/serial.log" || true)
  [ "$failed" -gt 0 ] && [ "$proven" -ge "$failed" ]
}
# Whether the emulated machine's own kernel gave up.
kernel_panicked() { [ ! -s "$verdict" ] && grep -q '^\[[ .0-9]*\] Kernel panic - not syncing' "$work/serial.log"; }
last_line() { tail -n 1 "$work/serial.log" | sed 's/\r//'; }
# Takes the tests that have passed off what is left to do.
note_passed() {
  # What a test or the kernel prints meanwhile stands between the test's name and its outcome; a guest's console may have said a letter.
  awk '{ sub(/\r$/, "") } /^test [^ ]+ \.\.\. / { name = $2 } /^ok$|^test [^ ]+ \.\.\. [^ ]?ok$/ { if (name != "") print name }
    /^(test [^ ]+ \.\.\. )?(ok|FAILED)$/ { name = "" }' "$work/serial.log" > "$run/ok"
  cat "$run/ok" >> "$run/passed"
  for tests in lib integration; do
    grep -vxF -f "$run/ok" "$run/$tests.left" > "$run/still" || true
    mv "$run/still" "$run/$tests.left"
  done
}
# What other people's tools make of the core: makedumpfile the kernel's log, drgn its tasks.
read_core() {
  local tasks
  if [ "$(head -c 4 "$core" | tr -d '\0')" != $'\x7fELF' ]; then
    [ "$filter" != native ] || fail "no core of a Linux guest came out of the emulated machine"
    return 0
  fi
  makedumpfile --dump-dmesg "$core" "$run/dmesg" > "$run/makedumpfile" 2>&1 && grep -q "Linux version $release " "$run/dmesg" ||
    fail "makedumpfile found no log of $release in the exported core: $(cat "$run/makedumpfile")"
  say "makedumpfile reads $(wc -l < "$run/dmesg") lines of the kernel's log in an exported core"
  if [ ! -d "$work/drgn" ]; then
    say "SKIP: drgn can not be had here, and reads no exported core"
    return 0
  fi
  tasks=$(PYTHONPATH=$work/drgn timeout 120 python3 scripts/tasks.py "$core" "$kernel/vmlinux" 2> "$run/drgn") &&
    grep -qx '0 swapper/0' <<< "$tasks" && grep -q '^1 ' <<< "$tasks" && grep -qx '2 kthreadd' <<< "$tasks" ||
    fail "drgn found no tasks in the exported core: $tasks $(cat "$run/drgn")"
  say "drgn lists $(wc -l <<< "$tasks") tasks of an exported core"
}
booted_s=$SECONDS
for ((boots = 1; ; boots++)); do
  left_s=$((limit_s - (SECONDS - booted_s)))
  say "$(cat "$run"/*.left | wc -l) of $listed test(s) on $release under QEMU's emulation, at most $left_s s"
  boot "$left_s"
  note_passed
  if [ "$boots" = "$boots_most" ]; then
    break
  elif [ "$boot_status" = hung ]; then
    say "******** THE EMULATED MACHINE HAS NO PULSE FOR $pulse_limit_s s: it is started again. Its last line: $(last_line) ********"
  elif [ "$boot_status" = 0 ] && kernel_panicked; then
    say "******** THE EMULATED MACHINE'S OWN KERNEL PANICKED: it is started again. The console is kept in $work/panic.log ********"
    cp "$work/serial.log" "$work/panic.log"
  elif [ "$boot_status" = 0 ] && emulator_did_it; then
    say "******** THE EMULATOR SHUT A GUEST DOWN WITH ITS HOST'S REGISTERS: the emulated machine is started again. It was in: $(failed_tests | tr '\n' ' ')********"
  else
    break
  fi
done
took_s=$((SECONDS - booted_s))
case $boot_status in
  0) ;;
  hung) fail "hung each time: no pulse for $pulse_limit_s s. The console's last line: $(last_line)" ;;
  quiet) fail "a test hangs: the machine goes on, and nothing was printed for $quiet_limit_s s. The console's last line: $(last_line)" ;;
  late) fail "no verdict within $limit_s s, so it was ended. The console's last line: $(last_line)" ;;
  *) fail "QEMU ended with exit status $boot_status: $(cat "$run/qemu.log")" ;;
esac
case $(tr -d '\r\n' < "$verdict") in
  "passed $nonce")
    count=$(wc -l < "$run/passed")
    [ "$count" -gt 0 ] || fail "no test ran"
    read_core
    say "passed: $count of $listed native tests on mainline KVM, $took_s s from power-on"
    ;;
  "failed $nonce") fail "native tests failed on mainline KVM (console: $work/serial.log)" ;;
  *) fail "the guest stopped without a verdict, as after a kernel panic (console: $work/serial.log)" ;;
esac

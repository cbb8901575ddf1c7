#!/usr/bin/env bash
# Provides what the test lanes need on Debian or Ubuntu, and does nothing when all of it is there.
# usage: install.sh build|nested|witnesses    build: what compiling needs; nested: that, QEMU, the tools around it, and a kernel;
#        witnesses: servers of etcd and S3 for the tests of witnesses
# Only a missing compiler is installed. Everything else is downloaded with apt and unpacked in nested/ or witnesses/ of cargo's target
# directory, as any user, and leaves the system as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

fail() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    fail "to install a C compiler, run this as root or install sudo"
  fi
}

install_compiler() {
  ! command -v cc > /dev/null || return 0
  command -v apt-get > /dev/null || fail "no C compiler (cc), and there is no apt-get here to install one with"
  as_root apt-get update -q >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 g++ >&2 ||
    fail "apt-get could not install g++"
}

# apt with lists, a cache and an empty package database of its own: root is not needed, nothing that is installed here can be in the
# way, and a package comes with all that it depends on, down to the C library.
apt_is_ready=no
ready_apt() {
  [ "$apt_is_ready" = no ] || return 0
  command -v apt-get > /dev/null || fail "missing: $1, and there is no apt-get here to download it with"
  configure_apt "$work/apt"
  apt-get -c "$work/apt/apt.conf" update -q >&2 || fail "apt-get could not get the lists of packages"
  apt_is_ready=yes
}

configure_apt() { # PLACE
  rm -rf "$1"
  mkdir -p "$1"/{state/lists/partial,cache/archives/partial}
  # Hooks of the system's configuration are for its own lists and packages.
  cat > "$1/apt.conf" << CONFIGURATION
Dir::State "$1/state";
Dir::State::status "/dev/null";
Dir::Cache "$1/cache";
Dir::Cache::archives "archives/";
Debug::NoLocking "true";
APT::Sandbox::User "$(id -un)";
APT::Install-Recommends "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
CONFIGURATION
}

# QEMU is a copy of our own, for defects of it are corrected there (scripts/qemu.py). One before 8 emulates SVM with several processors badly: the
# emulated machine stops now and then, its guests shut down. One before 10.2 loses an interrupt now and then.
qemu_is_in() { # PLACE VERSION: whether apt there has that version or a newer one
  local version
  version=$(apt-cache -c "$1/apt.conf" policy qemu-system-x86 | sed -n 's/^ *Candidate: \([0-9]*:\)\?\([0-9].*\)/\2/p')
  dpkg --compare-versions "${version:-0}" ge "$2"
}

# On Debian, the stable release and its backports on the mirror that the system uses: for what the system's own release has only in a version
# that is too old. Only its packages are unpacked, with all they depend on. Prints the place of a configuration for apt.
ready_stable() {
  local place=$work/apt-stable mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg suite
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | sed -n 's/^Debian \(.*\/debian\/\)$/\1/p' | head -n 1)
  [ -n "$mirror" ] && [ -e "$keyring" ] || return 1
  configure_apt "$place"
  cat >> "$place/apt.conf" << CONFIGURATION
Dir::Etc::sourcelist "$place/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Default-Release "stable-backports";
CONFIGURATION
  for suite in stable stable-backports; do
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >> "$place/sources.list"
  done
  if ! apt-get -c "$place/apt.conf" update -q >&2; then
    # A mirror without backports.
    sed -i '/Default-Release/d' "$place/apt.conf"
    sed -i '/stable-backports/d' "$place/sources.list"
    apt-get -c "$place/apt.conf" update -q >&2 || return 1
  fi
  printf '%s\n' "$place"
}

# unpack TREE FILE...: as on a system whose /bin, /sbin and /lib are links into /usr, whatever the packages think
unpack() {
  local tree=$1 package name
  shift
  for name in bin sbin lib lib64; do
    mkdir -p "$tree/usr/$name"
    ln -sfn "usr/$name" "$tree/$name"
  done
  for package in "$@"; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$tree"
  done
}

# missing COMMAND:PACKAGE ...: those pairs whose command is not there; QEMU where it is not our own copy and can be had
missing() {
  local pair
  for pair in "$@"; do
    if [ "${pair%%:*}" = qemu-system-x86_64 ] && command -v apt-get > /dev/null; then
      [ -e "$work/tools/qemu" ] || printf '%s\n' "$pair"
    else
      command -v "${pair%%:*}" > /dev/null || printf '%s\n' "$pair"
    fi
  done
}

# place_tools COMMAND:PACKAGE ...: unpacks the packages of those commands that are missing into tools/tree, with a command in tools/bin
# for each.
place_tools() {
  local pairs new=$work/tools.new pair place
  mapfile -t pairs < <(missing "$@")
  [ ${#pairs[@]} -gt 0 ] || return 0
  # All of them anew: one tree has one version of each library.
  rm -rf "$work/tools"
  mapfile -t pairs < <(missing "$@")
  ready_apt "${pairs[*]%%:*}"
  place=$work/apt
  if [[ " ${pairs[*]}" = *' qemu-'* ]]; then
    qemu_is_in "$place" 10.2 || place=$(ready_stable) || place=$work/apt
    qemu_is_in "$place" 8 ||
      printf 'install: ******** ONLY AN OLD QEMU CAN BE HAD HERE: expect the emulated machine to stop now and then ********\n' >&2
  fi
  apt-get -c "$place/apt.conf" install -qy --download-only "${pairs[@]#*:}" >&2 || fail "apt-get could not download ${pairs[*]#*:}"
  rm -rf "$new"
  mkdir -p "$new/bin"
  unpack "$new/tree" "$place"/cache/archives/*.deb
  for pair in "${pairs[@]}"; do
    place_command "$new" "${pair%%:*}"
  done
  if [ -e "$new/bin/qemu-system-x86_64" ]; then
    touch "$new/qemu"
  fi
  mv "$new" "$work/tools"
}

# Whenever this script runs: what a copy needs may be known only since it was made.
correct_qemu() {
  [ ! -e "$work/tools/qemu" ] || python3 scripts/qemu.py "$work/tools/tree/usr/bin/qemu-system-x86_64" >&2 ||
    printf 'install: ******** A DEFECT OF QEMU IS NOT CORRECTED HERE: expect a guest to hang or to shut down now and then ********\n' >&2
}

place_command() { # PLACE COMMAND
  local program=$1/tree/usr/bin/$2 target
  [ -e "$program" ] || [ -L "$program" ] || program=$1/tree/usr/sbin/$2
  while [ -L "$program" ]; do
    target=$(readlink "$program")
    case $target in
      /*) program=$1/tree$target ;;
      *) program=$(dirname "$program")/$target ;;
    esac
  done
  [ -x "$program" ] || fail "no $2 in the packages that were unpacked"
  program=$(realpath "$program")
  program=${program#"$1/tree/"}
  # A dynamic program names its loader near its beginning; a static one is used as it is.
  if ! head -c 4096 "$1/tree/$program" | grep -a 'ld-linux-x86-64\.so' > /dev/null; then
    ln -s "../tree/$program" "$1/bin/$2"
    return
  fi
  # With the tree's own loader and libraries, and for QEMU its modules and firmware.
  cat > "$1/bin/$2" << WRAPPER
#!/bin/bash
tree=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/tree
lib=\$tree/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=\$lib/qemu
exec "\$lib/ld-linux-x86-64.so.2" --library-path "\$lib:\$lib/pulseaudio:\$tree/usr/lib" --argv0 $2 "\$tree/$program" \
  $([[ $2 != qemu-* ]] || printf '%s' '-L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios"') "\$@"
WRAPPER
  chmod +x "$1/bin/$2"
}

# Sets `packages` to those that the kernel behind a metapackage consists of, for example linux-image-6.1.0-1-cloud-amd64. Debian's
# kernels come in one package; Ubuntu's have their modules in a second one.
packages=()
find_kernel_packages() {
  local meta image
  packages=()
  for meta in linux-image-cloud-amd64 linux-image-virtual; do
    image=$(dependency "$meta" linux-image || true)
    if [ -n "$image" ]; then
      mapfile -t packages < <(printf '%s\n' "$image" && dependency "$image" linux-modules)
      return
    fi
  done
  fail "apt-get knows neither linux-image-cloud-amd64 nor linux-image-virtual"
}
dependency() {
  apt-cache -c "$work/apt/apt.conf" depends "$1" 2> /dev/null | sed -n "s/^ *Depends: \\($2-[0-9].*\\)/\\1/p"
}

place_kernel() {
  [ ! -e "$work/kernel/vmlinuz" ] || return 0
  local new=$work/kernel.new image modules
  rm -rf "$new"
  mkdir -p "$new/download"
  ready_apt "a kernel"
  find_kernel_packages
  (cd "$new/download" && apt-get -c "$work/apt/apt.conf" download -q "${packages[@]}" >&2) ||
    fail "apt-get could not download ${packages[*]}"
  unpack "$new/tree" "$new"/download/*.deb
  image=$(find "$new/tree/boot" -name 'vmlinuz-*' -print -quit)
  modules=$(find "$new/tree/usr/lib/modules" -mindepth 1 -maxdepth 1 -print -quit)
  if [ -z "$image" ] || [ -z "$modules" ]; then
    fail "no kernel with modules in ${packages[*]}"
  fi
  # One layout whatever the package's: vmlinuz, release, lib/modules/RELEASE.
  mkdir -p "$new/lib/modules"
  mv "$modules" "$new/lib/modules/"
  mv "$image" "$new/vmlinuz"
  basename "$modules" > "$new/release"
  rm -rf "$new/tree" "$new/download"
  depmod -b "$new" "$(cat "$new/release")"
  rm -rf "$work/kernel"
  mv "$new" "$work/kernel"
}

# The ELF image inside the kernel's bzImage, as kernel/vmlinux. The header of the boot protocol says where it is: its distance from the end of
# the sectors of real mode, and its length. Its last four bytes are the size that it unpacks to.
place_vmlinux() {
  local kernel=$work/kernel/vmlinuz elf=$work/kernel/vmlinux at length bytes unpack magic
  [ ! -e "$elf" ] || return 0
  field() { od -An -v -t"u$2" -j "$1" -N "$2" "$kernel" | tr -d ' '; }
  at=$(($(field 0x248 4) + 512 * ($(field 0x1f1 1) + 1)))
  length=$(field 0x24c 4)
  bytes=$(field $((at + length - 4)) 4)
  magic=$(od -An -v -tx1 -j "$at" -N 6 "$kernel" | tr -d ' ')
  case $magic in
    1f8b*) unpack=(gzip -dc) ;;
    fd377a585a00) unpack=(xz -dc) ;;
    28b52ffd*) unpack=(zstd -qdc) ;;
    02214c18*) unpack=(lz4 -qdc) ;;
    *) fail "the kernel is compressed by what this script has no tool for: it begins with $magic" ;;
  esac
  # gzip's own last bytes are the size; behind the others' ends it was appended.
  [ "${unpack[0]}" = gzip ] || length=$((length - 4))
  dd if="$kernel" bs=1M iflag=skip_bytes,count_bytes skip="$at" count="$length" status=none | "${unpack[@]}" > "$elf.new" ||
    fail "the kernel inside $kernel does not unpack"
  [ "$(stat -c %s "$elf.new")" = "$bytes" ] && [ "$(head -c 4 "$elf.new")" = $'\x7fELF' ] || fail "what $kernel unpacks to is no ELF image of $bytes bytes"
  mv "$elf.new" "$elf"
}

# Redis for Linux guests: bin/redis-server, and lib/ with the program and all its libraries. It runs from /mnt, where guests have their disk.
place_redis() {
  local new=$work/redis.new lib=usr/lib/x86_64-linux-gnu library
  [ ! -d "$work/redis" ] || return 0
  rm -rf "$new"
  # In a shell of its own: what is missing here ends no run.
  if ! (ready_apt redis-server && apt-get -c "$work/apt/apt.conf" clean &&
    apt-get -c "$work/apt/apt.conf" install -qy --download-only redis-server >&2); then
    printf 'install: ******** redis-server CAN NOT BE HAD HERE: no test of a Linux guest on the network ********\n' >&2
    return 0
  fi
  unpack "$new/tree" "$work/apt/cache/archives"/*.deb
  mkdir -p "$new/redis"/{bin,lib}
  cp -L "$new/tree/$lib/ld-linux-x86-64.so.2" "$new/tree/usr/bin/redis-server" "$new/redis/lib"
  for library in $("$new/tree/$lib/ld-linux-x86-64.so.2" --library-path "$new/tree/$lib" --list "$new/redis/lib/redis-server" | grep -o '/[^ ]*'); do
    cp -Ln "$library" "$new/redis/lib"
  done
  cat > "$new/redis/bin/redis-server" << 'WRAPPER'
#!/bin/sh
exec /mnt/lib/ld-linux-x86-64.so.2 --library-path /mnt/lib /mnt/lib/redis-server "$@"
WRAPPER
  chmod +x "$new/redis/bin/redis-server"
  mv "$new/redis" "$work/redis"
  rm -rf "$new"
}

# drgn, as drgn/ of the tree: from PyPI, where python3 has a pip. Nothing else is taken in its place.
place_drgn() {
  [ ! -d "$work/drgn" ] || return 0
  rm -rf "$work/drgn.new"
  if python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: --target "$work/drgn.new" drgn==0.3.0 >&2 &&
    PYTHONPATH=$work/drgn.new python3 -c 'import drgn' >&2; then
    mv "$work/drgn.new" "$work/drgn"
  else
    rm -rf "$work/drgn.new"
    printf 'install: ******** drgn CAN NOT BE HAD HERE: no test of exported cores with it ********\n' >&2
  fi
}

# A server of S3, as moto/ of the tree, from PyPI. `moto[server]` would bring what all of its services need, five times as much.
place_moto() {
  [ ! -d "$work/moto" ] || return 0
  rm -rf "$work/moto.new"
  python3 -m pip install -q --disable-pip-version-check --target "$work/moto.new" 'moto[s3]==5.2.1' flask==3.1.3 flask-cors==6.0.2 >&2 &&
    PYTHONPATH=$work/moto.new python3 -c 'import moto.server' >&2 || fail "python3 -m pip could not install moto, a server of S3"
  mv "$work/moto.new" "$work/moto"
}

# Makes $work in cargo's target directory. Two runs that share one must not both unpack.
begin_work() { # NAME
  work=${CARGO_TARGET_DIR:-target}/$1
  mkdir -p "$work"
  work=$(realpath "$work")
  PATH=$work/tools/bin:$PATH
  exec 9> "$work/lock"
  flock -w 600 9 || fail "another run has held $work/lock for 10 minutes"
}

case ${1-} in
  build)
    install_compiler
    ;;
  witnesses)
    install_compiler
    begin_work witnesses
    place_tools etcd:etcd-server
    place_moto
    rm -rf "$work/apt"
    ;;
  nested)
    install_compiler
    begin_work nested
    place_tools qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod modprobe:kmod xz:xz-utils zstd:zstd lz4:lz4 \
      mkfs.ext4:e2fsprogs e2fsck.static:e2fsck-static makedumpfile:makedumpfile
    correct_qemu
    place_drgn
    place_kernel
    place_vmlinux
    place_redis
    rm -rf "$work/apt" "$work/apt-stable"
    ;;
  *)
    printf 'usage: install.sh build|nested|witnesses\n' >&2
    exit 2
    ;;
esac
command -v cargo > /dev/null || fail "cargo is missing: install Rust 1.89 or newer (rustup, or the distribution's packages where they are new enough)"

#!/usr/bin/env bash
# Makes a Linux guest to try the command with: a kernel, an initrd with a shell, and a disk's image with an ext4 file system.
# usage: guest.sh DIR    writes DIR/vmlinuz, DIR/initrd and DIR/disk
# The guest loads its virtio drivers, mounts the disk at /mnt, and gives a shell on its console. With `net=ADDRESS/BITS` on the kernel's command
# line its first network device has that address. `work N` begins a process that checks what it keeps on the disk and in memory, over and over,
# and says so. `redis-server` is on the disk, where apt could give it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
[ $# = 1 ] || {
  printf 'usage: guest.sh DIR\n' >&2
  exit 2
}
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/nested")
export PATH="$work/tools/bin:$PATH:/usr/sbin:/sbin"
scripts/install.sh nested
mkdir -p "$1"
out=$(realpath "$1")
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
root=$made/root disk=$made/disk

mkdir -p "$root"/{bin,dev,proc,sys,mnt,tmp,modules} "$disk"
cp -L "$(command -v busybox)" "$root/bin/busybox"
cp -L "$(command -v e2fsck.static)" "$root/bin/e2fsck"
scripts/modules.sh "$root/modules" virtio_mmio virtio_blk virtio-rng virtio_net

cat > "$root/init" << 'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/mnt/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in /modules/*; do
  insmod "$module"
done
[ ! -b /dev/vda ] || mount -t ext4 /dev/vda /mnt
ip link set lo up
# The kernel puts words that it does not know into the environment.
[ -z "${net-}" ] || { ip address add "$net" dev eth0 && ip link set eth0 up; }
echo "guest: $(nproc) processors, Linux $(uname -r)"
exec setsid cttyhack sh
INIT

# What is kept twice, on the disk and in memory, is compared before it is changed. A checkpoint that mixes two instants, or a disk and a
# memory of two, shows.
cat > "$root/bin/work" << 'WORK'
#!/bin/busybox sh
me=$1
disk=/mnt/work$me memory=/tmp/work$me
wrong() {
  echo "WRONG $me $count: $*"
  exit 1
}
mkdir -p $disk $memory
[ -e $disk/count ] || echo 0 > $disk/count
cp $disk/count $memory/count
while true; do
  read -r count < $disk/count || wrong "no count on the disk"
  read -r other < $memory/count || wrong "no count in memory"
  [ "$count" = "$other" ] || wrong "$count on the disk, $other in memory"
  if [ "$count" -gt 0 ] && [ -e $memory/sum ]; then
    # Every third time from the disk itself.
    [ $((count % 3)) != 0 ] || echo 1 > /proc/sys/vm/drop_caches
    read -r sum _ < $memory/sum
    for file in $disk/data $memory/data; do
      set -- $(md5sum $file)
      [ "$1" = "$sum" ] || wrong "$file has the sum $1 and not $sum"
    done
  fi
  dd if=/dev/urandom of=$memory/data bs=4k count=$((8 + count % 24)) 2> /dev/null
  dd if=$memory/data of=$disk/data.new bs=16k conv=fsync 2> /dev/null || wrong "the disk can't be written"
  mv $disk/data.new $disk/data
  md5sum $memory/data > $memory/sum
  count=$((count + 1))
  echo $count | dd of=$disk/count.new conv=fsync 2> /dev/null
  mv $disk/count.new $disk/count
  echo $count > $memory/count
  echo "work $me $count."
done
WORK
chmod +x "$root/init" "$root/bin/work"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) > "$out/initrd"
cp "$work/kernel/vmlinuz" "$out/vmlinuz"
rm -f "$out/disk"
truncate -s 64M "$out/disk"
# Not in the initrd, which each boot unpacks.
[ ! -d "$work/redis" ] || cp -r "$work/redis/." "$disk"
mkfs.ext4 -q -F -d "$disk" "$out/disk"

#!/bin/busybox sh
# The first process of the virtual machine. Its root is the host's, read-only; /tmp, /run and /dev/shm are its own. The project and
# the directory that is shared for writing are where the host has them. Runs /job, says its exit code and switches the machine off.
b=/bin/busybox
p9() {
  $b mount -t 9p -o "$2,trans=virtio,version=9p2000.L,msize=512000,cache=loose" "$1" "$3" || $b poweroff -f
}
$b mkdir -p /dev /host
$b mount -t devtmpfs dev /dev
# shellcheck source=/dev/null
. /places
for module in /modules/*; do $b insmod "$module" || $b poweroff -f; done
p9 root ro /host
$b mount -t devtmpfs dev /host/dev
$b mkdir -p /host/dev/pts /host/dev/shm
$b mount -t devpts pts /host/dev/pts
$b mount -t proc proc /host/proc
$b mount -t sysfs sys /host/sys
for own in tmp run dev/shm; do $b mount -t tmpfs -o mode=1777,size=90% tmpfs /host/$own; done
$b mkdir -p "/host$project" "/host$share"
p9 project ro "/host$project"
p9 share rw "/host$share"
# A huge page would be changed as a whole.
echo never >/host/sys/kernel/mm/transparent_hugepage/enabled
$b ip link set lo up
$b cp /job /host/run/job
echo "vm: up"
exec $b switch_root /host /bin/sh -c '
  cd /tmp
  setsid -w sh /run/job </dev/null 2>&1
  echo "vm: exit code $?"
  sync
  echo o >/proc/sysrq-trigger
  sleep 60'

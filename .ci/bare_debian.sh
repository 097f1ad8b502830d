#!/usr/bin/env bash
# Tries the README's command where nothing is installed: makes a fresh Debian 12 with git in a folder (debootstrap, as root),
# clones the committed tree into it, and runs the command there. Takes some GB and a network.
#
#   .ci/bare_debian.sh FOLDER [COMMAND]
#
# The folder is made, kept, and used again (with a fresh clone) if it is there. COMMAND is one of the README's two: bash
# cmake/setup_and_test.sh, which it is by default, or bash cmake/setup_and_study.sh.
set -euo pipefail
source_tree="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
root=$(realpath -m "${1:?usage: $0 FOLDER}")

if [ ! -e "$root/usr/bin/git" ]; then
    debootstrap --variant=minbase --include=git,ca-certificates bookworm "$root"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"

unmount() {
    umount "$root/proc" "$root/dev/shm" "$root/dev" 2>/dev/null || true
}
trap unmount EXIT
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mountpoint -q "$root/dev/shm" || mount -t tmpfs tmpfs "$root/dev/shm"

rm -rf "$root/root/switchyard" "$root/root/source.git"
git clone -q --bare "$source_tree" "$root/root/source.git"
time env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" bash -c '
    set -e
    git clone -q /root/source.git /root/switchyard
    cd /root/switchyard
    '"${2:-bash cmake/setup_and_test.sh}"

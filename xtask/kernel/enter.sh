#!/bin/sh
# Runs a command inside another root directory; `unshare --mount --uts` starts it as root, so that its mounts end with it, and
# so does the machine's name, which is one that the directory can resolve.
# $1: the root directory. $2: USER:GROUP for the command. Then pairs: a directory, and where the command shall see it.
# Then `--` and the command.
set -eu
root=$1 user=$2
shift 2
hostname localhost
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot --userspec="$user" "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 "$@"

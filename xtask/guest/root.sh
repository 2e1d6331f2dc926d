#!/bin/sh
# Runs on the host as the last hook of mmdebstrap: makes the root file system.
# $1: the guest's root directory, $2: where init lies, $3: where the results go.
set -eu
root=$1 parts=$2 out=$3
inside() { chroot "$root" "$@"; }

# The guests trust one another and nobody else: the key is made here and only used on their own wire.
install -m 755 "$parts/init" "$root/sbin/vmshm-init"
rm -f "$root"/etc/ssh/ssh_host_*_key*
inside ssh-keygen -q -t ed25519 -N '' -C guest -f /etc/ssh/ssh_host_ed25519_key
mkdir -p -m 700 "$root/root/.ssh"
inside ssh-keygen -q -t ed25519 -N '' -C guest -f /root/.ssh/id_ed25519
cp "$root/root/.ssh/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
echo "* $(cat "$root/etc/ssh/ssh_host_ed25519_key.pub")" > "$root/etc/ssh/ssh_known_hosts"
printf 'PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n' > "$root/etc/ssh/sshd_config"
mkdir -p "$root/opt/vmshm"

# An ordinary user who may use the guest driver. The password is one that fits none; "!" would lock ssh out, too.
inside groupadd --system vmshm
inside useradd --create-home --shell /bin/bash --groups vmshm --password '*' mpi
inside install -d -m 700 -o mpi -g mpi /home/mpi/.ssh
inside ssh-keygen -q -t ed25519 -N '' -C guest -f /home/mpi/.ssh/id_ed25519
inside cp /home/mpi/.ssh/id_ed25519.pub /home/mpi/.ssh/authorized_keys
inside chown -R mpi:mpi /home/mpi/.ssh

rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root"/var/log/*
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
# Seen through a plain bind mount, the tree is free of the /proc, /sys and /dev that mmdebstrap mounted.
view=$out/view
mkdir "$view"
mount --bind "$root" "$view"
megabytes=$(du -sm "$view" | cut -f 1)
mke2fs -q -F -t ext4 -O ^has_journal -d "$view" "$out/root.ext4" "$((megabytes * 5 / 4 + 200))M"
umount "$view"
rmdir "$view"

#!/bin/sh
# Runs on the host as a hook of mmdebstrap: fetches the release's own kernel and makes the initramfs for it.
# $1: the guest's root directory, $2: where initramfs-init lies, $3: where the results go.
set -eu
root=$1 parts=$2 out=$3
inside() { chroot "$root" "$@"; }

# The kernel is unpacked, not installed: its package would pull in and run an initramfs generator.
package=$(inside apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
mkdir -m 755 "$root/kernel"
inside sh -c "cd /kernel && apt-get --quiet -o APT::Sandbox::User=root download $package && dpkg-deb --extract ./*.deb ."
version=${package#linux-image-}
cp "$root/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
inside depmod --basedir /kernel "$version"

tree=$root/initramfs
mkdir -p "$tree/bin" "$tree/modules" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/root"
cp "$root/bin/busybox" "$tree/bin/busybox"
install -m 755 "$parts/initramfs-init" "$tree/init"
for name in virtio_pci virtio_blk virtio_net virtio_console ext4; do
    inside modprobe --dirname /kernel --set-version "$version" --show-depends "$name"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
    cp "$root$module" "$tree/modules/"
    echo "/modules/${module##*/}"
done > "$tree/modules/order"
inside sh -c 'cd /initramfs && find . | busybox cpio -o -H newc 2>/dev/null' > "$out/initramfs"
rm -rf "$root/kernel" "$tree"

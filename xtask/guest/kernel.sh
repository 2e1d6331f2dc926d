#!/bin/sh
# Runs on the host as a hook of mmdebstrap: fetches the release's own kernel and makes the initramfs for it.
# $1: the guest's root directory, $2: where initramfs-init lies, $3: where the results go.
set -eu
root=$1 parts=$2 out=$3
inside() { chroot "$root" "$@"; }

# The kernel is unpacked, not installed: its package would pull in and run an initramfs generator.
package=$(inside apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
mkdir -m 755 "$root/kernel"
inside sh -c "cd /kernel && apt-get --quiet -o APT::Sandbox::User=root download $package && dpkg-deb --extract ./*.deb ."
version=${package#linux-image-}
cp "$root/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
inside depmod --basedir /kernel "$version"
# Files of drivers, and of those that they need.
drivers() {
    for name in "$@"; do
        inside modprobe --dirname /kernel --set-version "$version" --show-depends "$name"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++'
}

tree=$root/initramfs
mkdir -p "$tree/bin" "$tree/modules" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/root"
cp "$root/bin/busybox" "$tree/bin/busybox"
install -m 755 "$parts/initramfs-init" "$tree/init"
drivers virtio_pci virtio_blk virtio_net virtio_console ext4 | while read -r module; do
    cp "$root$module" "$tree/modules/"
    echo "/modules/${module##*/}"
done > "$tree/modules/order"
# SoftRoCE, for modprobe in the guest, and the checksum that it asks the kernel for by name. The cloud kernel has no SoftRoCE.
drivers rdma_rxe crc32_generic | while read -r module; do
    install -D -m 644 "$root$module" "$root/lib/modules/$version/${module##*/}"
done
inside depmod "$version"
inside sh -c 'cd /initramfs && find . | busybox cpio -o -H newc 2>/dev/null' > "$out/initramfs"
rm -rf "$root/kernel" "$tree"

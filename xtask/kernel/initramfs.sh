#!/bin/sh
# Runs in the chroot: makes the initramfs with which a guest boots Debian's kernel.
# $1: the kernel's release. /kernel: Debian's packages of the kernel and its modules, unpacked, and initramfs-init.
set -eu
release=$1
mkdir -p /kernel/lib
mv /kernel/usr/lib/modules /kernel/lib/modules
# The kernel as it is before it gets a signature for Secure Boot.
mv "/kernel/lib/modules/$release/vmlinuz.unsigned" /kernel/vmlinuz
depmod --basedir /kernel "$release"

tree=/kernel/tree
mkdir -p "$tree/bin" "$tree/modules" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/root"
cp /bin/busybox "$tree/bin/busybox"
install -m 755 /kernel/initramfs-init "$tree/init"
for name in virtio_pci virtio_blk virtio_net virtio_console ext4; do
    modprobe --dirname /kernel --set-version "$release" --show-depends "$name"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
    name=${module##*/}
    # busybox loads no compressed modules.
    case $name in
        *.xz) name=${name%.xz} && xz --decompress --stdout "$module" > "$tree/modules/$name" ;;
        *) cp "$module" "$tree/modules/$name" ;;
    esac
    echo "/modules/$name"
done > "$tree/modules/order"
(cd "$tree" && find . | busybox cpio -o -H newc) > /kernel/initramfs
rm -rf "$tree" /kernel/usr /kernel/lib /kernel/initramfs-init

#!/bin/sh
# Runs in the chroot: adds to Debian's kernel headers what modules in Rust need, made from the very same source.
# $1: the kernel's release, $2: how many jobs. /kernel: Debian's packages of headers and source, unpacked.
set -eu
release=$1 jobs=$2
headers=/kernel/usr/src/linux-headers-$release
work=/kernel/work
compiler=$(sed -n 's/^CC = .*(CROSS_COMPILE)\(gcc-[0-9]*\)$/\1/p' "$headers/.kernelvariables")
build() {
    make -C "$work/source" O="$work/out" ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- \
        CC="x86_64-linux-gnu-${compiler:?not named in $headers/.kernelvariables}" KERNELRELEASE="$release" "$@"
}

mkdir -p "$work/source" "$work/out"
# Most files of the source are of no use here: what gets compiled is the kernel's Rust code and tools of its build.
archive=$(echo /kernel/usr/src/linux-source-*.tar.xz)
top=$(basename "$archive" .tar.xz)
tar --extract --file "$archive" --directory "$work/source" --strip-components 1 --wildcards \
    --exclude="$top/Documentation/*/*" --exclude="$top/tools/testing/*" --exclude="$top/drivers/*.c" \
    --exclude="$top/fs/*.c" --exclude="$top/net/*.c" --exclude="$top/sound/*.c" \
    --exclude="$top/drivers/gpu/drm/amd/include/*" --exclude="$top/arch/*/boot/dts/*"
cp "$headers/.config" "$work/out/.config"
build olddefconfig
# Another compiler, or one that lacks a companion such as pahole, silently changes structures of the kernel.
if ! diff "$headers/.config" "$work/out/.config" > "$work/differences"; then
    echo "The tools of this chroot do not lead to Debian's configuration of $release (<: Debian's, >: here):"
    grep '^[<>]' "$work/differences"
    exit 1
fi
# Where it fails, once more with one job, so that the cause is what the log ends with.
build --jobs="$jobs" modules_prepare || build modules_prepare

# The names of Rust symbols hold hashes of the crates that they come from.
sed -n 's/^EXPORT_SYMBOL_RUST_GPL(\(.*\));$/\1/p' "$work"/out/rust/exports_*_generated.h | sort -u > "$work/ours"
cut -f 2 "$headers/Module.symvers" | sort -u > "$work/theirs"
comm -23 "$work/ours" "$work/theirs" > "$work/unknown"
if [ ! -s "$work/ours" ] || [ -s "$work/unknown" ]; then
    echo "Debian's $release lacks $(wc -l < "$work/unknown") of $(wc -l < "$work/ours") Rust symbols made here, as:"
    head -n 5 "$work/unknown"
    exit 1
fi

mkdir -p "$headers/rust"
cp "$work"/out/rust/*.rmeta "$work"/out/rust/*.so "$headers/rust/"
cp "$work/out/scripts/target.json" "$headers/scripts/"
# How the kernel wants Rust to be formatted and checked.
cp "$work/source/.rustfmt.toml" "$work/source/.clippy.toml" /kernel/usr/src/linux-headers-*-common/
rm -rf "$work" /kernel/usr/src/linux-source-* /kernel/usr/share

#!/bin/bash
# Runs inside the unpacked reference toolchain: /work holds QEMU's source; the result is /work/qemu-system-x86_64 with the
# machine `nitro-enclave` (and `microvm`, on which it stands), emulation only. Two builds give the same bytes.
set -eu
export PATH=/usr/sbin:/usr/bin HOME=/work LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=0
# Debian makes this when it installs, which nobody did here; Python's own pip does not start without it.
mkdir -p /etc/ssl/certs
cat /usr/share/ca-certificates/mozilla/*.crt >/etc/ssl/certs/ca-certificates.crt
cd /work
mkdir source out
# The firmware's sources are three quarters of the files, and none of them is built.
tar xf qemu.orig.tar.xz -C source --strip-components=1 --exclude='*/roms/*'
# For tests of QEMU, and not packaged by Debian.
sed -i '/^pycotap/d' source/pythondeps.toml
cat > source/configs/devices/x86_64-softmmu/reference.mak <<M
CONFIG_PCI_DEVICES=n
CONFIG_NITRO_ENCLAVE=y
CONFIG_VHOST_USER_VSOCK=y
M
cd out
../source/configure --target-list=x86_64-softmmu --without-default-features --without-default-devices \
  --cc=gcc --with-devices-x86_64=reference --enable-system --enable-tcg --enable-fdt=system --enable-gnutls --enable-libcbor \
  --enable-vhost-user --disable-install-blobs --disable-debug-info --disable-download \
  --extra-cflags=-ffile-prefix-map=/work/= --prefix=/usr
nice -n 10 ninja -j2 qemu-system-x86_64
strip -o ../qemu-system-x86_64 qemu-system-x86_64

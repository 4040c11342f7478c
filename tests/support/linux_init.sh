#!/bin/busybox sh
# The first program of a guest: does what each line of its second serial port says, with the output
# there, and then a line `status: N`.
# Programs of their own names come first.
/bin/busybox mkdir -p /applets /dev /proc /sys /run /tmp /mnt
/bin/busybox --install -s /applets
export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/applets
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in virtio_pci virtio_blk virtio_scsi ata_piix sd_mod md_mod raid1 algif_skcipher xts; do
    modprobe "$module"
done
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo "status: ready" >&3
while read -r line <&3; do
    eval "$line" >/tmp/output 2>&1
    status=$?
    cat /tmp/output >&3
    echo "status: $status" >&3
done

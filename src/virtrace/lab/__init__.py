"""A private, real libvirtd with QEMU guests."""

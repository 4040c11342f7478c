"""Numbers of libvirt's public API in words: tables, made by tools/public-values.py."""

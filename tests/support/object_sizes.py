"""Prints the size of an object of each type of libvirt that a client meets, as GLib says: JSON."""

from __future__ import annotations

import ctypes
import json

TYPES = ("virConnect", "virDomain", "virDomainObj", "virDomainObjList", "virNetworkObj", "virCaps")


class Query(ctypes.Structure):
    """GTypeQuery of GLib."""

    _fields_ = (
        ("type", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("class_size", ctypes.c_uint),
        ("instance_size", ctypes.c_uint),
    )


def main() -> None:
    libvirt = ctypes.CDLL("libvirt.so.0")
    libvirt.virConnectOpen.restype = ctypes.c_void_p
    # This driver is in the library: its domains are of the type that a daemon has, too.
    assert libvirt.virConnectOpen(b"test:///default")
    gobject = ctypes.CDLL("libgobject-2.0.so.0")
    gobject.g_type_from_name.restype = ctypes.c_size_t
    sizes = {}
    for name in TYPES:
        query = Query()
        kind = ctypes.c_size_t(gobject.g_type_from_name(name.encode()))
        gobject.g_type_query(kind, ctypes.byref(query))
        if query.type:
            sizes[name] = query.instance_size
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()

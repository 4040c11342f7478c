"""libvirt's daemons: names, modules, versions, hazards."""

"""Devices: hosts, chips, meshes and shardings."""

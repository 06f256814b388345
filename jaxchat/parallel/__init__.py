"""Devices and processes: the mesh, work shared out over it, and how processes find each other."""

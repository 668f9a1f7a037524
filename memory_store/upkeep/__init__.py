"""Maintenance of a session: garbage collection, verification, recovery, copies and exports."""

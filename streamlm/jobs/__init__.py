"""Many documents: one job each, in a pool of processes here or on a Ray cluster."""

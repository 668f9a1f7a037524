"""Heads: alternative treatments of the past on the same backbone, one file each."""

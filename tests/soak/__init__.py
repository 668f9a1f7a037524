"""Soak tests: kills, races, damage, crafted stores, inputs and requests, as many as one asks for.

`make soak` runs them at full length and prints counts; the suite runs a short form of each.
"""

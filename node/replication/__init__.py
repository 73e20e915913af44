"""Keeps the replicas of a mesh equal: `push` tells of new rows, `pull` fetches what is missing, `verify` proves it."""

"""Stands in for the script of this name."""

from standin import train

train("flux_kontext")

"""Stands in for the script of this name."""

from standin import cache

cache("cache_latents")

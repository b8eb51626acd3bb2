"""Stands in for the script of this name."""

from standin import train

train("qwen_image")

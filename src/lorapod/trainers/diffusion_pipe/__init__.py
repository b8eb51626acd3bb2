"""diffusion-pipe: rendered, started and read as the separate program that it is."""

from lorapod.trainers.diffusion_pipe.limits import check
from lorapod.trainers.diffusion_pipe.render import render

__all__ = ["check", "render"]

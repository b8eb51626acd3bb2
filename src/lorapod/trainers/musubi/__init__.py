"""musubi-tuner: rendered, started and read as the separate programs that it is."""

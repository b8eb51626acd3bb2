"""Captioners, and the runner that writes what they say beside the media without ever losing or overwriting a caption."""

"""What processes of the engine tell each other: how they ended, and where they meet."""

RANKS_STORE = "LORAPOD_RANKS"
"""Environment variable with the file by which the ranks of `engine.launch` find each other."""

STOPPED = 130
"""It was asked to stop, and did after the present step."""

LOST = 75
"""It could not go on because another rank is gone."""

"""Explorers: pictures of a run that are scrubbed and played in the browser. `base` says how one is made."""

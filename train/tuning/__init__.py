"""Ways of tuning a model: what is trained, what may be merged, and what is written."""

"""``emdl info``: what a model holds."""

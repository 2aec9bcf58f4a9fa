"""From Hydra overrides to runs, from runs to stacks, from stacks to the store."""

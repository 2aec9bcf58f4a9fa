"""Training: `make_train` gives the pure function of one run, `loop` drives a stack of runs."""

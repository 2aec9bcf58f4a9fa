"""Images as arrays: embedded digits and TFDS sets, and the subsets that runs train on."""

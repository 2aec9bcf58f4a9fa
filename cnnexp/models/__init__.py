"""Networks made of tied layers: `spec` says what they are, `network` computes them."""

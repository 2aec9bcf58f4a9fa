"""Networks made of tied layers: their specification, their matched widths, and the networks themselves."""

"""How the maps of a layer are computed; private to ."""

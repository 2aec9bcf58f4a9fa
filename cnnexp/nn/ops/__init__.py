"""How the maps of a layer are computed; only `cnnexp.nn` imports this package."""

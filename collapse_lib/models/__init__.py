"""Model families: each module is one family, built from `nets` and `objectives`."""

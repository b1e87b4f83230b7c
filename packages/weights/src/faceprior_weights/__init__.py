"""Weights of faceprior, one folder each; `faceprior.priors.store` finds them."""

"""Weights of faceprior for any use, one folder each; `faceprior.priors.store` finds them."""

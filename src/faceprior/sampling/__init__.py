"""Reverse diffusion: one loop, its schedules of steps, its solvers and its source of noise."""

from __future__ import annotations

from faceprior.sampling.loop import (
    Batch,
    Initial,
    OnStep,
    Restoration,
    Sampled,
    Sampler,
    Started,
    Stepped,
    sample,
    sample_batches,
)
from faceprior.sampling.noise import NoiseSource, face_generator, noised, spawn_generators
from faceprior.sampling.solvers import Denoised, Solver, make_solver
from faceprior.sampling.steps import Step, spaced_steps, time_travel

__all__ = [
    "Batch",
    "Denoised",
    "Initial",
    "NoiseSource",
    "OnStep",
    "Restoration",
    "Sampled",
    "Sampler",
    "Solver",
    "Started",
    "Step",
    "Stepped",
    "face_generator",
    "make_solver",
    "noised",
    "sample",
    "sample_batches",
    "spaced_steps",
    "spawn_generators",
    "time_travel",
]

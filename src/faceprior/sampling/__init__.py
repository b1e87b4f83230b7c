"""Reverse diffusion: one loop, its schedules of steps, its solvers and its source of noise."""

from __future__ import annotations

from faceprior.sampling.loop import Denoised, OnStep, Restoration, map_images, sample, whole_batches
from faceprior.sampling.noise import NoiseSource, face_generator, spawn_generators
from faceprior.sampling.solvers import Solver, make_solver
from faceprior.sampling.steps import Step, spaced_steps, time_travel

__all__ = [
    "Denoised",
    "NoiseSource",
    "OnStep",
    "Restoration",
    "Solver",
    "Step",
    "face_generator",
    "make_solver",
    "map_images",
    "sample",
    "spaced_steps",
    "spawn_generators",
    "time_travel",
    "whole_batches",
]

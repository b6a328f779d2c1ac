"""Diffusion mathematics: pure functions and frozen descriptions, no variables, nothing configurable by surprise.

    schedules          how much noise at which timestep
    timesteps          which timesteps training visits
    corruption         x_start -> x_t
    parameterization   what the network predicts, and back to x_start and noise
    losses             a loss for each view
    samplers           noise -> images
"""

"""Diffusion mathematics: pure functions and frozen descriptions, no variables, nothing configurable by surprise.

schedules          how much noise at which timestep
timesteps          which timesteps training visits
corruption         x_start -> x_t
parameterization   what the network predicts, and back to x_start and noise
losses             a loss for each view
samplers           noise -> images; the one entry to what follows
timestep_spacing   which timesteps a sampler visits
guidance           classifier-free guidance of a prediction
thresholding       a predicted x_start back into the range of images
ddim               samplers 'ddim' and 'ancestral'
dpm_solver         sampler 'dpmpp_2m'
edm_heun           sampler 'edm_heun'
"""

"""From plan and network to weights: views, train_step, checkpoints, summaries, stages, trainer."""

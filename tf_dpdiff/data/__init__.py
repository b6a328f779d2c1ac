"""Where images come from (datasets, procedural), how views of them are varied (augmentation), how batches are made
(pipelines)."""

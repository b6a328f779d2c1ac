"""What the samples are and what they are worth: generate, utility, report."""

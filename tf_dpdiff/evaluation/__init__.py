"""What the samples are and what they are worth: generate, utility, report; what a model gives away: canaries,
membership, audit_picture."""

"""What pages hold that no person writes: the reference of configurations, and measured numbers."""

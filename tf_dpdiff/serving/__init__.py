"""From weights to a servable model: export."""

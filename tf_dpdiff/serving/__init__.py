"""From weights to a servable model, and images from a server: export, client."""

"""Images from a released model: how they are drawn, and how they are stored."""

"""What samples are worth (metrics, neighbors, utility, selection), what a model gives away (canaries, membership), and
how both are shown (report, pictures)."""

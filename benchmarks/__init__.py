"""Benchmarks; a package, so that it is found before the one of that name that Opacus installs."""

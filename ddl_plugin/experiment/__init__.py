"""Studies: many runs of one recipe side by side. `study` (what) -> `runs` (which) -> `runner` -> `results`, `figure`."""

"""The template-based protocols of IJB-B and IJB-C: 1:1 verification and 1:N identification."""

"""What people look at: distributions of similarities, figures, sheets of faces, reports."""

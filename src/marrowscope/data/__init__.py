"""Where the pictures come from: sources, index, audit, split and drawn phantoms."""

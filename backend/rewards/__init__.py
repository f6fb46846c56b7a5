"""Images or rewrites to scores. Must not import renderers, rewriters or search."""

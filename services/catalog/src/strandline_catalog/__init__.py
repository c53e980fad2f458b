"""The catalog: one place to ask about sources, recovery points and jobs; truth lives elsewhere."""

"""Which recovery points go, and when: policies, the watched clock, deletes that are due."""

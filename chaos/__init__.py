"""Breaking RelayMesh on purpose, and judging what it does then."""

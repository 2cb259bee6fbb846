"""The composition: algorithms, and the phases of a round."""

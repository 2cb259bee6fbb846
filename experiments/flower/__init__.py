"""The engine Flower: the same experiments with clients on other machines."""

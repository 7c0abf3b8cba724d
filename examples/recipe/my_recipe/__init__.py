"""The recipe my-recipe for Trainyard."""

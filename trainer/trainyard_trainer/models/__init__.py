"""Models, one file each: plain torch modules without a word about how they are trained."""

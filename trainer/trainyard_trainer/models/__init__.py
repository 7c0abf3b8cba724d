"""Models, one file each: plain torch modules, independent of how they are trained."""

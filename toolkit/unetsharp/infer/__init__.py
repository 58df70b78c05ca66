"""From pictures to nuclei: read, resample, normalize stains, tile, blend, split into instances."""

"""What a segmentation is written as: GeoJSON, CSV, overlay picture, class mask, and the record of the run."""

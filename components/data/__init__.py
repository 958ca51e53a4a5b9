"""From images to batches: sources, the encoded `.beton` file, and loaders that give the same batches everywhere."""

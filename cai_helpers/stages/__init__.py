"""One file a stage, one public entry each, named by its verb."""

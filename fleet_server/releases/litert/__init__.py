"""TFLite files: examined, run and quantised. Imported by children of the laboratory only."""

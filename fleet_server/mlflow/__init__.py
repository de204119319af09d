"""Takes models out of an MLflow registry, by its documented REST API and nothing else."""

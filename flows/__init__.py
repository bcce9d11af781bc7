"""One thin module a stage. Importing the package prepares the environment, which must come before Prefect's import."""

from flows.environment import prepare

prepare()

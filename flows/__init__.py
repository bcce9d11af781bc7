"""One thin module a stage. Importing the package prepares the environment, which must come before Prefect's import."""

from flows.lab.environment import prepare

prepare()
